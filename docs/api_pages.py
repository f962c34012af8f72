"""Write the API reference: a page for every module, in the tree of the package.

A name that ``pyro_perm`` exports is documented as ``pyro_perm.NAME``, on the page of the module
that defines it.
"""

import inspect
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro_perm


def page(module: ModuleType, submodules: list[str]) -> str:
    """The reStructuredText page of a module: exported names, then its others."""
    path = module.__name__
    title = f"``{path.rpartition('.')[2]}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {path}"]
    for name, member in sorted(members(module), key=lambda item: not is_exported(item[1])):
        kind = "class" if isinstance(member, type) else "function"
        lines += ["", f".. auto{kind}:: {'pyro_perm' if is_exported(member) else path}.{name}"]
        if isinstance(member, type):
            lines += ["   :members:"]
            lines += ["   :show-inheritance:"] if member.__bases__ != (object,) else []
    if submodules:
        lines += ["", ".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {submodule}" for submodule in submodules]
    return "\n".join(lines) + "\n"


def members(module: ModuleType) -> list[tuple[str, Any]]:
    """Names and values of the public classes and functions that a module defines."""
    return [
        (name, member)
        for name, member in vars(module).items()
        if getattr(member, "__module__", None) == module.__name__
        and (inspect.isclass(member) or inspect.isfunction(inspect.unwrap(member)))
        and not name.startswith("_")
    ]


def is_exported(member: Any) -> bool:
    return any(getattr(pyro_perm, name) is member for name in pyro_perm.__all__)


def write_pages(package: ModuleType, folder: Path) -> list[str]:
    """Write the pages of a package's modules; private ones are left out.

    :returns: the pages' names, relative to the folder.
    """
    folder.mkdir()
    names = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = import_module(f"{package.__name__}.{info.name}")
        submodules = write_pages(module, folder / info.name) if info.ispkg else []
        submodules = [f"{info.name}/{submodule}" for submodule in submodules]
        (folder / f"{info.name}.rst").write_text(page(module, submodules))
        names.append(info.name)
    return names


def write_reference(app):
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    write_pages(pyro_perm, folder)


def skip_field_alias(app, what, name, obj, skip, options):
    """Leave out the generated docstrings of named tuples' fields."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-skip-member", skip_field_alias)
    return {"parallel_read_safe": True}
