"""docs/supported.md says what is observed here; ``python tests/test_supported.py`` rewrites it."""

import math
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from contracts.estimator import EXAMPLES
from problems import linear, normal, observe, one_hidden_layer, recurrent, two_hidden_layers
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
UNITS = 4
DATA = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None], torch.zeros(8, dtype=torch.float64)
SYMMETRY = {"hidden": {"w1": 0, "w2": 1}}


def far_apart():
    """What the guide draws tells the permutation, so that I(g; w) = log 4! at every draw."""
    return {"w1": 9.0 * torch.arange(UNITS)[:, None].double(), "w2": torch.zeros(1, UNITS).double()}


def start(site):
    return far_apart()[site["name"]]


def model(x, y):
    observe(linear(torch.tanh(linear(x, normal("w1", UNITS, 1))), normal("w2", 1, UNITS)), y)


def list_of_guides():
    guide = AutoGuideList(model)
    for site in SYMMETRY["hidden"]:
        guide.append(AutoNormal(poutine.block(model, expose=[site]), init_loc_fn=start))
    return guide


def function_of_normals():
    def guide(x, y):
        for site, value in far_apart().items():
            loc = pyro.param(f"{site}_loc", value)
            pyro.sample(site, dist.Normal(loc, 0.1).to_event(2))

    return guide


GUIDES = {
    kind.__name__: partial(kind, model, init_loc_fn=start)
    for kind in (
        AutoNormal,
        AutoDiagonalNormal,
        AutoLowRankMultivariateNormal,
        AutoMultivariateNormal,
        AutoGaussian,
        AutoStructured,
        AutoNormalMessenger,
        AutoHierarchicalNormalMessenger,
        AutoDelta,
        AutoLaplaceApproximation,
    )
} | {
    "AutoIAFNormal": partial(AutoIAFNormal, model),
    "AutoGuideList of AutoNormal": list_of_guides,
    "a function that samples Normals": function_of_normals,
}
JIT = {"ignore_jit_warnings": True}
LOSSES = {
    Trace_ELBO: {},
    TraceMeanField_ELBO: {},
    TraceGraph_ELBO: {},
    TraceEnum_ELBO: {"strict_enumeration_warning": False},
    RenyiELBO: {},
    JitTrace_ELBO: JIT,
    JitTraceMeanField_ELBO: JIT,
    pp.TraceSymmetrized_ELBO: {},
}
ESTIMATORS = [example.estimator for example in EXAMPLES]
PROBLEMS = {
    "one layer of 4": one_hidden_layer(4),
    "one layer of 40": one_hidden_layer(40),
    "two layers of 3 and 4": two_hidden_layers(),
    "two layers of 20": two_hidden_layers(20, 20),
    "recurrent": recurrent(),
}


def loss_at_first_step(guide, kind, **options):
    """The loss of a step, the same draws at every call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    particles = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}
    svi = SVI(model, guide(), Adam({"lr": 0.01}), kind(**particles, **LOSSES[kind], **options))
    return svi.step(*DATA)


def gain(guide, kind, estimator, *, by_loss):
    """What an estimator, given to the guide or to the loss, takes off the loss."""
    symmetry = pp.PermutationSymmetry(SYMMETRY)
    if by_loss:
        correct = partial(loss_at_first_step, guide, kind, symmetry=symmetry)
        return correct(estimator=pp.InfoNCE(1)) - correct(estimator=estimator)

    def symmetrized(estimator):
        return pp.AutoSymmetrized(guide(), symmetry, estimator=estimator)

    plain, corrected = (
        loss_at_first_step(partial(symmetrized, e), kind) for e in (pp.InfoNCE(1), estimator)
    )
    return plain - corrected


def refusal(guide, kind, estimator=None, *, by_loss=False):
    """Why a guide cannot be symmetrized under a loss, or None if it can, by the right amount."""
    try:
        found = gain(guide, kind, estimator, by_loss=by_loss)
    except (TypeError, ValueError, NotImplementedError) as error:
        return str(error)
    assert math.isclose(found, math.lgamma(UNITS + 1), abs_tol=1e-6), (kind, found)
    return None


def guide_table():
    """Rows of a table, and reason -> the guides that cannot be wrapped for this reason."""
    rows, reasons = [], {}
    for name, guide in GUIDES.items():
        why, cell = support(guide, list(LOSSES), by_loss=False)
        rows.append((name, cell, support(guide, [pp.TraceSymmetrized_ELBO], by_loss=True)[1]))
        for reason in why:
            reasons.setdefault(reason, []).append(name)
    return rows, reasons


def support(guide, kinds, *, by_loss):
    """What the default estimator says, and whether it or another serves under some losses."""
    why = set()
    for estimator, served in ((None, "yes"), (pp.ImportanceSampled(4), "`ImportanceSampled`")):
        refusals = {kind: refusal(guide, kind, estimator, by_loss=by_loss) for kind in kinds}
        refused = {kind.__name__: reason for kind, reason in refusals.items() if reason}
        why = why or set(refused.values())
        if not refused:
            return why, served
        if len(refused) < len(kinds):
            return why, f"{served}, but not {', '.join(refused)}"
    return why, "no"


def estimator_row(estimator):
    bounds = {(1, 0): "below", (0, 1): "above", (1, 1): "both sides", (0, 0): "neither"}
    sides, cells, gradient = set(), [], False
    for problem in PROBLEMS.values():
        pyro.clear_param_store()
        guide = problem.guide(pp.InfoNCE(1))
        sites = poutine.trace(guide).get_trace(*problem.args).nodes
        density = read_density(sites, guide.symmetry.group)
        if estimator.serves(density):
            cells.append("no")
            continue
        log_ratio = estimator.log_ratio(density)
        found = estimator.bounds(density)
        sides.add((found.lower is not None, found.upper is not None))
        gradient = gradient or has_gradient(log_ratio)
        cells.append("yes")
    return (f"`{type(estimator).__name__}`", bounds[max(sides)], yes(gradient), *cells)


def has_gradient(log_ratio):
    try:
        log_ratio.backward()
    except ValueError:  # Refused at backpropagation.
        return False
    return True


def yes(condition):
    return "yes" if condition else "no"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page():
    """The page, from what happens."""
    torch.set_default_dtype(torch.float64)
    guides, reasons = guide_table()
    losses = ", ".join(f"`{kind.__name__}`" for kind in LOSSES)
    return f"""\
<!-- Written by `python tests/test_supported.py`; the tests compare it with what they observe. -->
# What is supported

These tables are written by `python tests/test_supported.py`, from what happens when the code runs;
the test suite compares.

## Guides and losses

A guide is supported where a step of `SVI` takes exactly `log n!` nats off the loss of a network
whose hidden units are far apart, with two vectorized particles: by default, or with the estimator
that is named. The losses are {losses}.

{table(("base", "`AutoSymmetrized(base)`, every loss", "`TraceSymmetrized_ELBO`"), guides)}

What `AutoSymmetrized` says to the others, with its default estimator:

{chr(10).join(f"- {', '.join(names)}: *{why}*" for why, names in reasons.items())}

## Estimators

Which side of `I(g; w)` an estimator bounds, whether it has a gradient, and whether it serves
networks of some widths and depths:

{table(("estimator", "bounds from", "gradient", *PROBLEMS), map(estimator_row, ESTIMATORS))}

## Models

`find_symmetry` reads the symmetry off the model's operations: see
[what is found](discovery.md#what-is-found), and [what is missed](discovery.md#what-is-missed).
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_page_says_what_happens():
    assert PAGE.read_text() == page(), "python tests/test_supported.py rewrites the page"


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    PAGE.write_text(page())
