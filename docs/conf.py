"""Sphinx configuration: `make docs`. The site needs no network, neither to build nor to read."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from colab import add_colab_link
from landing import landing_page

import pyro_perm

DOCS = Path(__file__).parent

project = "pyro_perm"
author = "The pyro_perm developers"
release = version = pyro_perm.__version__

extensions = [
    "api_pages",
    "myst_nb",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# A reference within the project that leads nowhere is an error; other projects' are not looked up.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|concurrent|nn|numpy|os|pyro|torch)\..*"),
    # Signatures name what is not published, too.
    ("py:class", r"pyro_perm\.\w+\..*"),
    (
        "py:class",
        "AutoGuide|Axes|AxisLike|Callable|DenseGaussian|Element|Likelihood|LowRankGaussian|PriorLike"
        "|Rule|Schedule|Tensor|optional",
    ),
]

# Tutorials come with the outputs that `make notebooks` committed.
nb_execution_mode = "off"

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_show_copyright = False


def copy_notebooks(app):
    """Sphinx reads below its own folder only, and the notebooks lie beside their sources."""
    shutil.rmtree(DOCS / "tutorials", ignore_errors=True)
    sources = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(DOCS.parent / "tutorials", DOCS / "tutorials", ignore=sources)
    for notebook in (DOCS / "tutorials").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        linked = add_colab_link(text, f"tutorials/{notebook.name}")
        notebook.write_text(linked, encoding="utf-8")


def put_readme(app, docname, source):
    """The first page is the README."""
    source[0] = landing_page(source[0], (DOCS.parent / "README.md").read_text(encoding="utf-8"))


def setup(app):
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", put_readme)
