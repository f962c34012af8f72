"""Every example of the documentation runs, and notebooks are what their sources say."""

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import nbformat
import pytest
import torch
from marks import slow_where

import pyro_perm as pp

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
from api_pages import EXTENSION_POINTS  # noqa: E402
from notebooks import TUTORIALS, unexecuted  # noqa: E402

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["pyro_perm", *(m.name for m in pkgutil.walk_packages(pp.__path__, "pyro_perm."))]
FINDER = doctest.DocTestFinder(exclude_empty=False)
CODE = re.compile(r"^```(python|pycon)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PAGES = [page for page in sorted(DOCS.glob("*.md")) if CODE.search(page.read_text())]
LONG = ("discovery", "gotchas", "how_it_is_built", "modules", "training")
SOURCES = sorted(TUTORIALS.glob("*.py"))


def docstrings_of(modules):
    return [
        docstring
        for module in modules
        for docstring in FINDER.find(importlib.import_module(module), module)
    ]


def shows_examples(module):
    """Whether its source does: to import what meets the compiler takes seconds."""
    return ">>>" in Path(find_spec(module).origin).read_text()


EXAMPLES = [each for each in docstrings_of(filter(shows_examples, MODULES)) if each.examples]


@pytest.fixture(scope="module")
def docstrings():
    return docstrings_of(MODULES)


def run(example):
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failed = runner.run(example, out=report.append, clear_globs=False).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_example_runs_as_it_stands(example):
    torch.set_default_dtype(torch.float32)
    example.globs = {}  # None of the module's names: it is pasted elsewhere.
    run(example)


def test_docstrings_show_no_code_that_is_not_run(docstrings):
    shown = re.compile(r"(Usage|Example)s?::|code-block")
    assert [each.name for each in docstrings if shown.search(each.docstring)] == []


def test_fields_of_docstrings_are_of_one_dialect(docstrings):
    """``:param x:``, ``:returns:``, ``:raises X:``, and ``Attributes:``."""
    other = re.compile(
        r":(return|type|rtype|arg|throws)\b[^:]*:|^ *(Args|Returns|Raises|Yields):", re.M
    )
    assert len(docstrings) > 500
    assert [each.name for each in docstrings if other.search(each.docstring)] == []


def test_parameters_that_docstrings_name_exist(docstrings):
    unknown = []
    for each in docstrings:
        module = max(
            (m for m in MODULES if f"{each.name}.".startswith(f"{m}.")), key=len, default=""
        )
        try:
            member = attrgetter(each.name[len(module) + 1 :])(importlib.import_module(module))
            parameters = inspect.signature(member).parameters
        except (AttributeError, TypeError, ValueError):
            continue  # A module, or an attribute.
        named = re.findall(r":param (\w+):", each.docstring)
        unknown += [f"{each.name}: {name}" for name in named if name not in parameters]
    assert unknown == []


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    "page", slow_where(lambda page: page.stem in LONG, PAGES), ids=lambda page: page.stem
)
def test_code_of_page(page):
    """The blocks of a page run one after the other, in one namespace."""
    torch.set_default_dtype(torch.float32)
    text = page.read_text()
    namespace = {"__name__": page.stem}
    for block in CODE.finditer(text):
        line = text.count("\n", 0, block.start(2))
        if block[1] == "pycon":
            example = doctest.DocTestParser().get_doctest(block[2], {}, page.name, str(page), line)
            example.globs = namespace  # Not a copy: later blocks see what this one defines.
            run(example)
        else:
            exec(compile("\n" * line + block[2], str(page), "exec"), namespace)


def test_reference_lists_every_exported_name():
    page = (DOCS / "api.md").read_text()
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    assert sorted([*listed, "readers", "__version__"]) == sorted(pp.__all__)
    readers = re.findall(r"^   readers\.\w+\.(\w+)$", page, re.MULTILINE)
    assert sorted(readers) == sorted(pp.readers.__all__)


def test_extension_points_exist_and_are_documented():
    for module, names in EXTENSION_POINTS.items():
        for name in names:
            member = getattr(importlib.import_module(module), name)
            assert (member.__module__, bool(member.__doc__)) == (module, True), f"{module}.{name}"


def test_what_subclasses_of_extension_points_are_given_is_documented():
    points = [
        getattr(importlib.import_module(module), name)
        for module, names in EXTENSION_POINTS.items()
        for name in names
    ]
    documented = {id(member) for member in [*points, *vars(pp).values()]}
    methods = [
        (kind, getattr(kind, name))
        for kind in [*points, pp.Estimator]
        for name in getattr(kind, "__abstractmethods__", ())
        if kind.__module__.startswith("pyro_perm")
    ]
    asked = {
        (kind.__name__, named.__name__): id(named) in documented
        for kind, method in methods
        for hint in typing.get_type_hints(getattr(method, "fget", method)).values()
        for named in classes_in(hint)
        if named.__module__.startswith("pyro_perm")
    }
    assert ("Estimator", "Density") in asked and ("UnitAction", "Orbits") in asked
    assert [names for names, is_documented in asked.items() if not is_documented] == []


def classes_in(hint):
    """The classes that an annotation is made of."""
    parts = typing.get_args(hint)
    return [each for part in parts for each in classes_in(part)] or (
        [hint] if isinstance(hint, type) else []
    )


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_between_files_lead_somewhere(name):
    page = ROOT / name
    links = LINK.findall(page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_is_its_source_executed(source):
    path = source.with_suffix(".ipynb")
    assert path.exists(), f"make notebooks ARGS={source.relative_to(ROOT)}"
    notebook, expected = nbformat.read(path, as_version=4), unexecuted(source)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in expected.cells
    ], f"{path.name} is out of date: make notebooks ARGS={source.relative_to(ROOT)}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < 1_000_000
