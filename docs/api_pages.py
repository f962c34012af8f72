"""Write the API reference: what `pyro_perm` exports, and what those who extend it build on.

A page for every module that defines such a name, in the tree of the package. A name that
``pyro_perm`` exports is documented as ``pyro_perm.NAME``, others by their full names.
"""

import inspect
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro_perm

EXTENSION_POINTS = {
    # Estimators: what they return, and what they are given.
    "pyro_perm.estimators.estimator": [
        *("Bounds", "register_estimator"),
        *("require_served", "joint_draws", "refuse_gradient"),
    ],
    "pyro_perm.density.factorized": ["FactorizedDensity"],
    "pyro_perm.density.correlated": ["CorrelatedDensity", "JointDistribution"],
    # Axis rules, and rules for signs and scales.
    "pyro_perm.discovery.permutations.rules.table": [
        *("AxisRule", "AxisRules", "AxisTensor", "moves_entries"),
    ],
    "pyro_perm.discovery.gradings.rules.table": ["Grading", "GradingRules", "grading_rule"],
    # Unit actions.
    "pyro_perm.symmetry.actions.unit_action": ["UnitAction"],
    "pyro_perm.symmetry.actions.finite": ["FiniteAction"],
    "pyro_perm.symmetry.actions.orbits": ["Orbits", "Part", "UnitPairs", "Units"],
    "pyro_perm.symmetry.elements": ["Element"],
    # Readers of base guides.
    "pyro_perm.density.base_guides.reader": [
        *("Reader", "Construction", "Refusal", "Drawn", "JointDraw"),
    ],
    "pyro_perm.density.base_guides.one_vector": ["OneVector", "Vector"],
    # Readers of other libraries' posteriors.
    "pyro_perm.networks.readers.bayesian_torch": ["from_bayesian_torch"],
    "pyro_perm.networks.readers.ivon": ["from_ivon"],
    "pyro_perm.networks.readers.laplace_torch": ["from_laplace", "prior_of_laplace"],
    "pyro_perm.networks.readers.posteriors": ["from_posteriors"],
    "pyro_perm.networks.readers.swag": ["from_swag"],
    "pyro_perm.networks.readers.torch_uncertainty": ["from_torch_uncertainty"],
    "pyro_perm.networks.readers.tyxe": ["from_tyxe"],
    # The group that a symmetry becomes once it has met a model.
    "pyro_perm.symmetry.group": ["SymmetryGroup"],
}


def page(module: ModuleType, names: dict[str, Any], submodules: list[str]) -> str:
    """The reStructuredText page of a module: exported names, then its others."""
    path = module.__name__
    title = f"``{path.rpartition('.')[2]}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {path}"]
    for name, member in sorted(names.items(), key=lambda item: not is_exported(item[1])):
        kind = "class" if isinstance(member, type) else "function"
        lines += ["", f".. auto{kind}:: {'pyro_perm' if is_exported(member) else path}.{name}"]
        if isinstance(member, type):
            lines += ["   :members:"]
            lines += ["   :show-inheritance:"] if member.__bases__ != (object,) else []
    if submodules:
        lines += ["", ".. toctree::", "   :maxdepth: 1", ""]
        lines += [f"   {submodule}" for submodule in submodules]
    return "\n".join(lines) + "\n"


def published(module: ModuleType) -> dict[str, Any]:
    """The exported names and extension points that a module defines.

    A module that is exported as a whole publishes all that is public.
    """
    whole = any(getattr(pyro_perm, name) is module for name in pyro_perm.__all__)
    extended = EXTENSION_POINTS.get(module.__name__, [])
    return {
        name: member
        for name, member in vars(module).items()
        if getattr(member, "__module__", None) == module.__name__
        and (inspect.isclass(member) or inspect.isfunction(inspect.unwrap(member)))
        and not name.startswith("_")
        and (whole or name in extended or is_exported(member))
    }


def is_exported(member: Any) -> bool:
    return any(getattr(pyro_perm, name) is member for name in pyro_perm.__all__)


def write_pages(package: ModuleType, folder: Path) -> list[str]:
    """Write the pages of a package's modules; those that publish nothing are left out.

    :returns: the pages' names, relative to the folder.
    """
    folder.mkdir()
    names = []
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        submodules = write_pages(module, folder / info.name) if info.ispkg else []
        submodules = [f"{info.name}/{submodule}" for submodule in submodules]
        members = published(module)
        if members or submodules:
            (folder / f"{info.name}.rst").write_text(page(module, members, submodules))
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
