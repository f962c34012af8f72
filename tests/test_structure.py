"""The tree is as CONTRIBUTING.md says: floors, circles, names of others, folders, long files."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import types
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from pyro.infer.autoguide import AutoGuide

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
    assert "pyro_perm.demo.experiment" in imports["pyro_perm.demo.command_line"]  # in a function
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


HOOKS = {
    "_get_trace": "a loss says by it what a pair of traces is",
    "_get_traces": "a loss says by it over which pairs of traces it averages",
    "_setup_prototype": "a guide makes its parameters in it",
}
"""Methods that classes of Pyro leave to their subclasses, which Pyro offers by no public name."""

STANDARD = {"_replace", "_fields", "_getframe"}  # Documented: of named tuples, and of sys.

FOREIGN = ("pyro", "torch")


def is_private(name):
    return name.isidentifier() and re.match(r"_+[^_]", name) and not name.endswith("__")


@cache
def syntax(file):
    return ast.parse(Path(file).read_text())


def attributes(class_):
    """Names that a class gives to methods, to variables, and to attributes of ``self``."""
    for node in ast.walk(class_):
        match node:
            case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


@cache
def foreign_attributes(class_):
    """Names of the attributes that a class has from Pyro and PyTorch."""
    names = set()
    for base in class_.__mro__:
        if base.__module__.split(".")[0] in FOREIGN:
            names |= set(vars(base)) | set(vars(base).get("__annotations__", ()))
            file = getattr(sys.modules[base.__module__], "__file__", "")
            tree = syntax(file) if file.endswith(".py") else ast.Module([])
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                    names |= set(attributes(node))
    return names


def bases(class_, namespace):
    """The classes that a class in a file is made from."""
    named = (eval(ast.unparse(base), dict(namespace)) for base in class_.bases)
    return types.resolve_bases(tuple(named))


def mentioned(tree):
    """Names of attributes and imports in a file, each with whether it is an attribute of self."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                yield from ((name, True) for name in attributes(node))
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                yield name, True
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                yield name, True
            case ast.Attribute(attr=name):
                yield name, False
            case ast.Import(names=aliases):
                yield from ((part, False) for a in aliases for part in a.name.split("."))
            case ast.ImportFrom(module=module, names=aliases) if not is_ours(module):
                yield from ((part, False) for part in module.split("."))
                yield from ((alias.name, False) for alias in aliases)


def is_ours(module):
    return module.split(".")[0] == "pyro_perm"


def quoted(tree):
    """Strings in a file, but for names that ``operators`` looks up, and parts of formatted ones."""
    skipped = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="operators"), args=names):
                skipped.update(part for name in names for part in ast.walk(name))
            case ast.JoinedStr(values=parts):
                skipped.update(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value


def borrowed(tree, namespace):
    """Private names of Pyro and PyTorch in a file.

    A private attribute is ours if a class in the file defines it, or if it is read from ``self``,
    unless classes of theirs have it.
    """
    names, own = set(), set()
    for class_ in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        theirs = set().union(*map(foreign_attributes, bases(class_, namespace)))
        own |= set(attributes(class_)) - theirs
        of_self = {name for name, is_of_self in mentioned(class_) if is_of_self}
        names |= (of_self & theirs) - HOOKS.keys()
    names |= {name for name, is_of_self in mentioned(tree) if not is_of_self} - own
    variables = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= set(quoted(tree)) - own - variables
    return {name for name in names if is_private(name)} - STANDARD


@pytest.mark.slow
def test_private_names_of_pyro_and_torch_are_used_in_two_files_only():
    found = {
        module: borrowed(syntax(ROOT / path), vars(importlib.import_module(module)))
        for module, path in import_graph.modules().items()
        if module not in INTERNALS
    }
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("_values", "x._values()"),
        ("_parameters", "module._parameters['weight']"),
        ("_base", "t._base"),
        ("_step", "optim._step(parameters)"),
        ("_ops", "import torch._ops"),
        ("_pytree", "from torch.utils._pytree import tree_map"),
        ("_tree_map", "from torch.utils import _tree_map"),
        ("_base", "getattr(t, '_base')"),
        ("_RETURN", "trace.nodes['_RETURN']"),
        ("_unconstrained", "f'{name.removesuffix(\"_unconstrained\")}'"),
        ("_is_view", "class A(Tensor):\n    def _is_view(self): return True\nt._is_view()"),
        ("_parameters", "class A(nn.Module):\n    def f(self): return self._parameters"),
        ("_call_impl", "class A(nn.Module):\n    def _call_impl(self): return 0"),
        ("_prototype_frames", "class A(AutoGuide):\n    def f(self): self._prototype_frames = {}"),
        ("_setup_prototype", "class A(AutoGuide): pass\nguide._setup_prototype()"),
    ],
)
def test_private_names_of_others_are_seen(name, program):
    namespace = {"nn": torch.nn, "Tensor": torch.Tensor, "AutoGuide": AutoGuide}
    assert borrowed(ast.parse(program), namespace) == {name}


def test_private_names_of_ones_own_are_not_taken_for_those_of_others():
    program = """
class A(AutoGuide):
    _count: int
    def _setup_prototype(self):
        super()._setup_prototype()
        self._sites, self._count = self._of_a_parent_of_ours, other._sites
_T = TypeVar("_T")
aten = operators("_softmax")
"""
    assert borrowed(ast.parse(program), {"AutoGuide": AutoGuide}) == set()


OTHER_TESTS = {
    "benchmarks": "of the scripts in benchmarks/",
    "contracts": "what every guide, reader and estimator keeps, whatever its room",
    "device": "what runs on an accelerator, of all rooms",
    "examples": "the architectures for discovery, which are no tests",
}
"""Folders of tests that are no folder of the package, and what is in them."""

TESTED_ABOVE = {
    "demo": "test_demo.py",
    "density/base_guides": "density/test_reader_contract.py",
    "discovery/gradings/rules": "discovery/gradings/test_rules.py",
    "discovery/permutations/rules": "discovery/permutations/test_rules.py",
    "networks/readers": "networks/test_readers.py",
    "symmetry/actions": "symmetry/test_unit_actions.py",
    "verification": "test_verification.py",
}
"""Folders of the package that one file in the folder of tests above goes through."""


def folders(root):
    """Those that hold Python files, relative to the root."""
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.py")} - {"."}


def test_the_tests_have_the_tree_of_the_package():
    tests, package = folders(ROOT / "tests"), folders(ROOT / "pyro_perm")
    assert tests - package == OTHER_TESTS.keys()
    assert package - tests == TESTED_ABOVE.keys()
    assert [file for file in TESTED_ABOVE.values() if not (ROOT / "tests" / file).is_file()] == []


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
