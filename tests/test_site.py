"""The site that `make docs` built: its links, and how it looks in a browser without a network."""

import functools
import http.server
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TUTORIALS = sorted(Path(__file__).parents[1].glob("tutorials/*.py"))
PAGES = [
    "index.html",
    *(f"tutorials/{tutorial.stem}.html" for tutorial in TUTORIALS),
    "mathematics.html",
    "discovery.html",
    "gotchas.html",
    "supported.html",
    "api.html",
    "how_it_is_built.html",
    "devices.html",
    "api/estimators/annealed.html",
]

# Elements that stick out on the right, other than within a box that scrolls.
STICKING_OUT = """
function scrolls(element) {
    return getComputedStyle(element).overflowX !== 'visible';
}
function boxed(element) {
    const parent = element.parentElement;
    return parent.tagName !== 'ARTICLE' && (scrolls(parent) || boxed(parent));
}
return [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e))
    .map(e => e.outerHTML.slice(0, 100));
"""

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").exists(), reason="the site is not built: make docs"
)
no_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)


def in_browser(test):
    return pytest.mark.slow(no_browser(test))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(QuietHandler, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # No network.
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def resize(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait_for(browser, selector):
    return WebDriverWait(browser, 20).until(
        lambda browser: browser.find_elements(By.CSS_SELECTOR, selector)
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
@in_browser
def test_page_fits_the_screen_and_asks_for_nothing_from_outside(browser, address, page, width):
    resize(browser, width)
    browser.get(f"{address}/{page}")
    assert browser.execute_script(STICKING_OUT) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    loaded = browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
    assert loaded
    errors = [entry["message"] for entry in browser.get_log("browser")]
    assert [error for error in errors if "favicon.ico" not in error] == []


@in_browser
def test_landing_page_shows_figure_commands_and_example(browser, address):
    browser.get(f"{address}/index.html")
    figures = browser.find_elements(By.CSS_SELECTOR, "article img")
    assert len(figures) == 2 and all(figure.size["width"] > 300 for figure in figures)
    text = browser.find_element(By.TAG_NAME, "article").text
    for needed in ("make demo", "make test", "pp.AutoSymmetrized(AutoNormal(model"):
        assert needed in text


@in_browser
def test_tutorial_shows_what_it_computed(browser, address):
    browser.get(f"{address}/tutorials/01_quickstart.html")
    outputs = browser.find_elements(By.CSS_SELECTOR, ".cell_output")
    assert "ELBO(q^G)  [" in outputs[-1].text


@in_browser
def test_formulas_are_typeset(browser, address):
    browser.get(f"{address}/mathematics.html")
    wait_for(browser, "mjx-container")
    num_formulas = len(browser.find_elements(By.CSS_SELECTOR, ".math"))
    assert len(wait_for(browser, "mjx-container[jax='CHTML']")) == num_formulas > 50
    assert not browser.find_elements(By.CSS_SELECTOR, "mjx-merror")


@in_browser
def test_search_finds_a_page_by_its_words(browser, address):
    resize(browser, 1280)
    browser.get(f"{address}/index.html")
    field = browser.find_element(By.CSS_SELECTOR, "input[name=q]")
    field.send_keys("quadratic assignment\n")
    results = wait_for(browser, "#search-results li a")
    assert any("mathematics.html" in result.get_attribute("href") for result in results)


def test_links_within_the_site_lead_somewhere():
    pages = {page: page.read_text() for page in SITE.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors.get(target, {anchor})):
                broken.append(f"{page.relative_to(SITE)}: {link}")
    assert broken == []
