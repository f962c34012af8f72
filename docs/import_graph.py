"""Who imports whom in the package, and on which floor of CONTRIBUTING.md each module lives."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "pyro_perm"

_ROW = re.compile(r"^\| (`[^|]*`) \| (.*) \|$", re.MULTILINE)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module; a package is its ``__init__.py``."""
    files = (path.relative_to(ROOT) for path in sorted((ROOT / PACKAGE).rglob("*.py")))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it names in an import, at whatever place in the file.

    That Python runs the ``__init__.py`` of a package before its modules is no arrow here.
    """
    files = modules()
    return {name: set(_imported(path, files)) for name, path in files.items()}


def _imported(path: Path, files: Mapping[str, Path]) -> list[str]:
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"relative import in {path}"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in files else node.module for name in inside]
    return [name for name in names if name.split(".")[0] == PACKAGE]


@functools.cache
def floors() -> dict[str, list[str]]:
    """The table of CONTRIBUTING.md, from the top: a floor's first name -> all names on it."""
    rows = _ROW.findall((ROOT / "CONTRIBUTING.md").read_text())
    names = [re.findall(r"`([^`]*)`", row) for row, _ in rows]
    return {
        first: [name.removesuffix("/").removesuffix(".py") for name in (first, *rest)]
        for first, *rest in names
    }


def floor_of(module: str) -> str:
    """The floor on which a module lives."""
    room = module.split(".")[1] if "." in module else "__init__"
    found = [floor for floor, rooms in floors().items() if room in rooms]
    assert len(found) == 1, f"{module} has no floor in the table of CONTRIBUTING.md"
    return found[0]
