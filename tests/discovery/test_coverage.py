"""docs/coverage.md says what is found with every family of distributions, and every operation of
``torch.nn.functional``; ``python tests/discovery/test_coverage.py`` rewrites it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from examples import families, functional
from examples.bayesian import normal
from pyro import poutine
from torch import Tensor

import pyro_perm as pp

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
UNDEFINED = "—"


def mixture(family: families.Family, y: Tensor) -> None:
    """Components with latent parameters."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    components = family.build(normal("parameters", 3, family.num_parameters))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)


def prior(family: families.Family, y: Tensor) -> None:
    """Units with a prior of this family, each with a weight."""
    parameters = torch.linspace(-1, 1, family.num_parameters).expand(4, -1)
    with pyro.plate("units", 4):
        unit = pyro.sample("unit", family.build(parameters))
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    mean = (unit.reshape(4, -1).mean(-1).tanh() * weight).sum()
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def likelihood(family: families.Family, x: Tensor, y: Tensor) -> None:
    """A network with one hidden layer that returns the parameters of the observations."""
    parameters = torch.tanh(x @ normal("w1", 2, 4)) @ normal("w2", 4, family.num_parameters)
    if not family.has_batches:
        pyro.sample("y", family.build(parameters.mean(0)), obs=y[0])
        return
    with pyro.plate("data", len(x)):
        pyro.sample("y", family.build(parameters), obs=y)


def network(layer: functional.Layer, x: Tensor) -> None:
    """A network with a layer, and Gaussian observations."""
    out = functional.network(layer, x)
    anything = torch.arange(out.numel()).cos().view(out.shape)
    pyro.sample("y", dist.Normal(out, 1.0).to_event(out.dim()), obs=anything)


def outcome(model: Callable[..., Any], spec: dict[str, int], *args: Tensor) -> str:
    """Whether a group is found, missed or not there, or what it takes is undefined in Pyro."""
    try:
        poutine.trace(model).get_trace(*args).compute_log_prob()
    except (NotImplementedError, ValueError):
        return UNDEFINED
    found = pp.find_symmetry(model, *args)
    for sites in found.spec.values():
        if all(pp.Axis(dim) in sites.get(site, ()) for site, dim in spec.items()):
            return "found"
    try:
        pp.PermutationSymmetry({"hidden": spec}).verify(model, *args)
    except pp.SymmetryVerificationError:
        return "none there"
    reasons = [found.reasons.get(f"{site}[{dim}]") for site, dim in spec.items()]
    reason = next(filter(None, reasons)).split(" (")[0].split(", so")[0]
    return f"missed: {reason}"


def family_row(name: str) -> str:
    family = families.FAMILIES[name]
    y = torch.stack([family.draw() for _ in range(5)])
    in_batches = prior_of = UNDEFINED
    if family.has_batches:
        in_batches = outcome(partial(mixture, family), {"weights": -1, "parameters": -2}, y)
    if family.data is None and family.has_batches and is_continuous(family):
        spec = {"unit": -y.dim(), "weight": -1}
        prior_of = outcome(partial(prior, family), spec, torch.tensor(0.3))
    network_of = outcome(partial(likelihood, family), {"w1": -1, "w2": -2}, torch.randn(5, 2), y)
    return f"| `{name}` | {in_batches} | {prior_of} | {network_of} |"


def is_continuous(family: families.Family) -> bool:
    return not family.build(torch.zeros(family.num_parameters)).support.is_discrete


def layer_row(name: str) -> str:
    layer, x = functional.LAYERS[name], torch.randn(3, functional.PLACES)
    model = partial(network, layer)
    sites = poutine.trace(model).get_trace(x).nodes
    return f"| `{name}` | {outcome(model, functional.channels_of(layer, sites), x)} |"


ROWS: dict[str, Callable[[], str]] = {
    **{f"dist.{name}": partial(family_row, name) for name in families.FAMILIES},
    **{f"F.{name}": partial(layer_row, name) for name in functional.LAYERS},
}


def row(name: str) -> str:
    """A row of a table; the same at every run."""
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about features in beta, and of reads
        return ROWS[name]()


def rows(kind: str) -> Iterator[str]:
    return (row(name) for name in ROWS if name.startswith(kind))


def page() -> str:
    """The page, from what happens."""
    newline = "\n"
    return f"""\
<!-- Written by `python tests/discovery/test_coverage.py`; the tests compare each row. -->
# Coverage

What `find_symmetry` finds, family by family and operation by operation, from what happens when the
code runs. *Found* is the group that permutes the components, or the hidden units. *None there* says
that a spec by hand is refused by the numerical check; *missed* that it would be accepted, and why
it was not found.

## Families of distributions

As the components of a mixture (with latent weights and parameters), as the prior of exchangeable
units, and as the likelihood whose parameters a network with a hidden layer returns. A dash stands
for what Pyro does not define, or does not draw or enumerate.

| family | component | prior | likelihood |
| --- | --- | --- | --- |
{newline.join(rows("dist."))}

Left out: {", ".join(f"`{name}` ({why})" for name, why in families.LEFT_OUT.items())}.

## Operations of `torch.nn.functional`

On hidden values with 4 channels: as a layer that keeps the channels or mixes them by weights, or as
a loss.

| operation | channels |
| --- | --- |
{newline.join(rows("F."))}
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_page_says_what_happens(name: str) -> None:
    rewrite = "python tests/discovery/test_coverage.py rewrites the page"
    assert row(name) in PAGE.read_text().splitlines(), rewrite


def test_every_family_of_distributions_is_listed() -> None:
    classes = {name: getattr(dist, name) for name in dist.__all__}
    of_pyro = {
        name
        for name, member in classes.items()
        if inspect.isclass(member) and issubclass(member, torch.distributions.Distribution)
    }
    listed = {name.split(",")[0] for name in families.FAMILIES}
    of_later_versions = {"GeneralizedPareto", "StableWithLogProb"}
    assert of_pyro | of_later_versions == listed | families.LEFT_OUT.keys()
    assert not listed & families.LEFT_OUT.keys()


def test_every_operation_of_torch_is_listed() -> None:
    tools = {"assert_int_or_pair", "boolean_dispatch"}
    of_torch = {
        name
        for name, member in vars(F).items()
        if callable(member) and not inspect.isclass(member) and not name.startswith("_")
        if not name.startswith("has_torch_function")
        if getattr(member, "__module__", "") not in ("typing", "torch.overrides")
    }
    listed = {name.split(",")[0] for name in functional.LAYERS}
    # Earlier versions of torch lack some of them.
    assert of_torch - tools <= listed | functional.LEFT_OUT


def test_the_page_has_no_other_rows() -> None:
    text = PAGE.read_text()
    assert text.count("\n| `") == len(ROWS)
    assert "missed: no axis rule for aten._" not in text


if __name__ == "__main__":
    PAGE.write_text(page())
