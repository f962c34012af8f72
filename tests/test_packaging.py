"""The package's description is the README, whose links lead somewhere from an index, too."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import pyro_perm

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="hatchling is not installed: make test installs it")
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
from colab import add_colab_link  # noqa: E402
from landing import PLACE, landing_page  # noqa: E402

from hatch_build import CustomMetadataHook, absolute  # noqa: E402


def built(monkeypatch, **environment):
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    metadata = {}
    CustomMetadataHook(str(ROOT), {}).update(metadata)
    return metadata


def test_links_of_the_packaged_readme_are_absolute(monkeypatch):
    address = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "them/it"}
    metadata = built(monkeypatch, **address)
    text = metadata["readme"]["text"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    inside = [link for link in links if link.startswith("https://example.org/them/it/")]
    assert len(inside) > 8
    for link in inside:
        kind, _, path = link.removeprefix("https://example.org/them/it/").split("/", 2)
        assert (ROOT / path.partition("#")[0]).exists()
        assert (kind == "raw") == path.endswith(".png")
    assert metadata["urls"]["Repository"] == "https://example.org/them/it"


def test_without_a_repository_nothing_is_made_up(monkeypatch):
    metadata = built(monkeypatch)
    assert metadata["readme"]["text"] == (ROOT / "README.md").read_text()
    assert "urls" not in metadata


def test_other_links_and_labels_stay():
    text = "[a](https://b.c) [d](#e) [![f](g.png)](h.md#i) `[j](k)`"
    expected = "[a](https://b.c) [d](#e) [![f](R/raw/HEAD/g.png)](R/blob/HEAD/h.md#i)"
    assert absolute(text, "R").startswith(expected)


def test_the_conda_recipe_asks_for_what_the_package_does():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert recipe["context"]["version"] == pyro_perm.__version__
    run = [line.replace(" ", "") for line in recipe["requirements"]["run"]]
    expected = [f"python{project['requires-python']}", *project["dependencies"]]
    assert run == [line.replace("torch>", "pytorch>") for line in expected]
    assert recipe["about"]["summary"] == project["description"]
    assert recipe["about"]["license"] == project["license"]


def test_notebooks_of_the_published_site_open_in_colab(monkeypatch):
    path = "tutorials/01_quickstart.ipynb"
    notebook = (ROOT / path).read_text()
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert add_colab_link(notebook, path) == notebook
    monkeypatch.setenv("GITHUB_REPOSITORY", "them/it")
    title, link, *rest = json.loads(add_colab_link(notebook, path))["cells"]
    assert [title, *rest] == json.loads(notebook)["cells"]
    address = re.search(r"\((https://colab.*?)\)", link["source"])[1]
    assert address.endswith("/github/them/it/blob/HEAD/tutorials/01_quickstart.ipynb")


def test_links_of_the_sites_first_page(monkeypatch):
    text = "![f](docs/figures/f.png) [g](docs/g.md#h) [t](tutorials/t.ipynb) "
    text += "[L](LICENSE) [u](https://u)"
    site = "![f](figures/f.png) [g](g.md#h) [t](tutorials/t.ipynb) {} [u](https://u)"
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    assert landing_page(PLACE, text) == site.format("L")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "them/it")
    address = "https://example.org/them/it/blob/HEAD/LICENSE"
    assert landing_page(PLACE, text) == site.format(f"[L]({address})")
