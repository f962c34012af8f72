"""docs/supported.md says what is observed here; ``python tests/test_supported.py`` rewrites it."""

import warnings
from functools import cache
from pathlib import Path

import pyro
import pytest
import torch
from contracts.estimator import EXAMPLES
from problems import one_hidden_layer, recurrent, two_hidden_layers
from pyro import poutine
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from supported_cases import (
    AXES,
    DATA,
    GUIDES,
    LOSSES,
    WithoutRsample,
    is_right,
    make_loss,
    model,
    value_and_gradient,
)

import pyro_perm as pp
from pyro_perm.density.base_guides import read_density

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
SPEC = {"hidden": AXES}
ESTIMATORS = [example.estimator for example in EXAMPLES]
# The latter is Pyro's own, of a flow in a loss that compiles.
NOT_COMPILED = (NotImplementedError, AssertionError)
PROBLEMS = {
    "one layer of 4": one_hidden_layer(4),
    "one layer of 40": one_hidden_layer(40),
    "two layers of 3 and 4": two_hidden_layers(),
    "two layers of 20": two_hidden_layers(20, 20),
    "recurrent": recurrent(),
}


ESTIMATORS_HEADER = (
    "estimator",
    "bounds from",
    "gradient",
    "second derivatives",
    "`torch.jit`",
    *PROBLEMS,
)


@cache
def refusal(case, kind, estimator, *, by_loss=False):
    """Why a guide is refused under a loss, or None if value and gradient are right."""
    try:
        right = is_right(case, kind, estimator, by_loss=by_loss)
    except (TypeError, ValueError, *NOT_COMPILED) as error:
        return str(error) or "not compiled"
    assert right, (case, kind)
    return None


def guide_rows():
    """Rows of a table, and reason -> the guides that cannot be wrapped for this reason."""
    rows, reasons = [], {}
    for name, case in GUIDES.items():
        why = refusal(case, Trace_ELBO, None)
        by_guide = support(case, LOSSES, by_loss=False)
        rows.append((name, by_guide, support(case, [pp.TraceSymmetrized_ELBO], by_loss=True)))
        if why is not None:
            reasons.setdefault(why, []).append(name)
    return rows, reasons


def support(case, kinds, *, by_loss):
    """Whether the default estimator, or another, serves under some losses."""
    first = next(iter(kinds))
    if refusal(case, first, None, by_loss=by_loss) is None:
        return but_not("yes", [k for k in kinds if refusal(case, k, None, by_loss=by_loss)])
    if refusal(case, first, pp.Exact(), by_loss=by_loss) is not None:
        return "no"
    exact = [k for k in kinds if refusal(case, k, pp.Exact(), by_loss=by_loss)]
    sampled = [k for k in kinds if not trains(case, k, pp.ImportanceSampled(4), by_loss=by_loss)]
    return f"{but_not('`Exact`', exact)}; {but_not('`ImportanceSampled`', sampled)}"


def but_not(served, refused):
    names = ", ".join(f"`{kind.__name__}`" for kind in refused)
    return f"{served}, but not {names}" if names else served


def trains(case, kind, estimator, *, by_loss):
    """Whether there are a value and a gradient, of an estimator that draws."""
    pyro.clear_param_store()
    base, symmetry = case.make(), pp.PermutationSymmetry(SPEC)
    try:
        if by_loss:
            found = value_and_gradient(
                make_loss(kind, symmetry=symmetry, estimator=estimator), base
            )
        else:
            guide = pp.AutoSymmetrized(base, symmetry, estimator=estimator)
            found = value_and_gradient(make_loss(kind), guide)
    except NOT_COMPILED:
        return False
    return bool(found.isfinite().all())


def loss_row(kind):
    """What a loss does with sites that have a reparametrized sample, and with others."""
    reparametrized = refusal(GUIDES["AutoNormal"], kind, None)
    pyro.clear_param_store()
    guide = pp.AutoSymmetrized(WithoutRsample(), pp.PermutationSymmetry(SPEC))
    try:
        value_and_gradient(make_loss(kind), guide)
        others = "right"
    except TypeError:
        others = "refused"
    return f"`{kind.__name__}`", "refused" if reparametrized else "right", others


def second_derivatives(estimator):
    """Whether an estimator has them, or says that it does not."""
    pyro.clear_param_store()
    case = GUIDES["AutoNormal"]
    guide = pp.AutoSymmetrized(case.make(), pp.PermutationSymmetry(SPEC), estimator=estimator)
    loss = Trace_ELBO().differentiable_loss(model, guide, *DATA)
    try:
        torch.autograd.grad(loss, guide.base.locs.w1, create_graph=True)
    except (RuntimeError, ValueError):
        return "error"
    return "yes"


def compiles(estimator):
    """Whether ``torch.jit.trace`` may record it."""
    return trains(GUIDES["AutoNormal"], JitTrace_ELBO, estimator, by_loss=False)


@cache
def density_of(name):
    """That of a base guide for one of the problems, for all estimators."""
    pyro.clear_param_store()
    problem = PROBLEMS[name]
    guide = problem.guide(pp.InfoNCE(1))
    sites = poutine.trace(guide).get_trace(*problem.args).nodes
    return read_density(sites, guide.symmetry.group)


def estimator_row(estimator):
    bounds = {(1, 0): "below", (0, 1): "above", (1, 1): "both sides", (0, 0): "neither"}
    sides, cells, gradient = set(), [], False
    for density in map(density_of, PROBLEMS):
        if estimator.serves(density):
            cells.append("no")
            continue
        log_ratio = estimator.log_ratio(density)
        found = estimator.bounds(density)
        sides.add((found.lower is not None, found.upper is not None))
        gradient = gradient or has_gradient(log_ratio)
        cells.append("yes")
    derivatives = (yes(gradient), second_derivatives(estimator)) if gradient else ("no", "no")
    facts = (bounds[max(sides)], *derivatives, yes(gradient and compiles(estimator)))
    return (f"`{type(estimator).__name__}`", *facts, *cells)


def has_gradient(log_ratio):
    try:
        log_ratio.backward(retain_graph=True)  # The next estimator reads the same density.
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
    guides, reasons = guide_rows()
    return f"""\
<!-- Written by `python tests/test_supported.py`; the tests compare it with what they observe. -->
# What is supported

These tables are written by `python tests/test_supported.py`, from what happens when the code runs;
the test suite compares.

## Losses

A loss is right where its value and its gradient are those of a guide that has the density
$q^G(w) = 1/|G| \\sum_g q(g w)$ written out as a distribution. The network has hidden units that
overlap, and there are two vectorized particles. Sites without a reparametrized sample have a
score-function term in their gradient, from which all losses but our own would leave
$\\log q^G - \\log q$ out.

{table(("loss", "`AutoSymmetrized(AutoNormal)`", "sites without `rsample`"), map(loss_row, LOSSES))}

`EnergyDistance` and `Trace_MMD` look at draws, and at no density of the guide: with `permute=True`,
the default, the draws are those of $q^G$. `SVGD` and MCMC have no guide.

## Guides

A guide is supported where it is right under the losses above, by default or with the estimators
that are named.

{table(("base", "`AutoSymmetrized(base)`", "`TraceSymmetrized_ELBO`"), guides)}

What `AutoSymmetrized` says to the others, with its default estimator:

{chr(10).join(f"- {', '.join(names)}: *{why}*" for why, names in reasons.items())}

## Estimators

Which side of `I(g; w)` an estimator bounds; whether it has a gradient, and second derivatives, as
Newton's method takes them; whether the losses of `torch.jit.trace` take it; and whether it serves
networks of some widths and depths:

{table(ESTIMATORS_HEADER, map(estimator_row, ESTIMATORS))}

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
