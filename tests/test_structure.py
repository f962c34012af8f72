"""The tree is as CONTRIBUTING.md says: floors, circles, names of others, lengths of files."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import draw_floors  # noqa: E402
import import_graph  # noqa: E402

FLOORS = list(import_graph.floors())


@pytest.fixture(scope="module")
def imports():
    return import_graph.imports()


INTERNALS = {
    "pyro_perm.program._pyro_internals",
    "pyro_perm.program._torch_internals",
}


def test_the_reader_of_imports_sees_them_all(imports):
    assert "pyro_perm.estimators.estimator" in imports["pyro_perm.estimators.bethe"]
    assert "pyro_perm.demo.comparison" in imports["pyro_perm.demo.command_line"]  # in a function
    assert "pyro_perm.demo.command_line" in imports["pyro_perm.__main__"]
    assert "pyro_perm.posterior.figures" in imports["pyro_perm"]
    assert sum(map(len, imports.values())) > 2 * len(imports)


def test_imports_run_in_no_circle(imports):
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)


def test_imports_run_down_only(imports):
    floor = {module: FLOORS.index(import_graph.floor_of(module)) for module in imports}
    arrows = {(module, other) for module, others in imports.items() for other in others}
    assert {(one, other) for one, other in arrows if floor[other] < floor[one]} == set()


def test_the_picture_of_the_floors_is_that_of_the_imports():
    picture = draw_floors.PICTURE.read_text()
    assert picture == draw_floors.draw(), "python docs/draw_floors.py redraws it"


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree):
    """Names that a file gives to functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def mentioned(tree):
    """Names of attributes and imports in a file, each with whether it is an attribute of self."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                yield name, True
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                yield name, True  # A hook: it is for subclasses.
            case ast.Attribute(attr=name):
                yield name, False
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                yield name, False
            case ast.Import(names=aliases):
                yield from ((part, False) for a in aliases for part in a.name.split("."))
            case ast.ImportFrom(module=module, names=aliases) if not is_ours(module):
                yield from ((part, False) for part in module.split("."))
                yield from ((alias.name, False) for alias in aliases)


def is_ours(module):
    return module.split(".")[0] == "pyro_perm"


@pytest.mark.slow
def test_private_names_of_pyro_and_torch_are_used_in_two_files_only():
    """A private name is ours if we define it and Pyro does not, or if it is read from ``self``."""
    trees = {
        module: ast.parse((ROOT / path).read_text())
        for module, path in import_graph.modules().items()
    }
    ours = {name for tree in trees.values() for name in defined(tree)}
    pyros = {
        name
        for path in Path(pyro.__file__).parent.rglob("*.py")
        for name in defined(ast.parse(path.read_text()))
    }
    standard = {"_replace", "_fields", "_getframe"}  # of named tuples and of sys
    found = {}
    for module, tree in trees.items():
        names = {
            name
            for name, of_self in mentioned(tree)
            if is_private(name) and name not in standard
            if name not in ours or (name in pyros and not of_self)
        }
        if names and module not in INTERNALS:
            found[module] = names
    assert found == {}


@pytest.mark.parametrize("folder", ["pyro_perm", "tests", "benchmarks", "docs", "tutorials"])
def test_no_file_is_long(folder):
    long = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if "_build" not in path.parts and len(path.read_text().splitlines()) > 400
    }
    assert long == set()


def test_no_test_file_is_a_library():
    imported = re.compile(r"^\s*(?:from|import)\s+(?:[\w.]+\.)?test_\w+", re.MULTILINE)
    assert imported.search("from contracts.test_written_guides import made")
    files = (ROOT / "tests").rglob("*.py")
    assert [path.stem for path in files if imported.search(path.read_text())] == []
