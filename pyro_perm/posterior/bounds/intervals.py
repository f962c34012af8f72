"""What symmetrization is worth: certified intervals for ``I(g; w)`` and ``ELBO(q^G)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from tqdm import tqdm

from pyro_perm.closed_form import ClosedFormTraces
from pyro_perm.density.base_sites import read_density
from pyro_perm.estimators import Estimator
from pyro_perm.first_call import as_estimator
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds.portfolio import MutualInformation, certify, standard_error
from pyro_perm.posterior.latents import require_no_others, summed_out
from pyro_perm.posterior.whose_symmetry import symmetry_of
from pyro_perm.program.call import Call, refuse_shared_keywords
from pyro_perm.program.full_data import FullData, SiteKind, glance
from pyro_perm.program.restoration import restored
from pyro_perm.program.summed_out import summing_out, traced_terms
from pyro_perm.sampling import draw_density, looking_on
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import symmetrization_nodes

_FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class SymmetrizedELBO:
    """An interval for ``ELBO(q^G) = ELBO(q) + I(g; w)``, in nats.

    Attributes:
        lower: estimate that bounds ``ELBO(q^G)`` from below in expectation.
        upper: the same from above.
        lower_standard_error: of ``lower``.
        upper_standard_error: of ``upper``.
        base: ``ELBO(q)`` of the base guide, its KL term in closed form where it exists.
        base_standard_error: of ``base``.
        log_order: ``log |G|``, the most that symmetrization can gain.
        mutual_information: the interval for ``I(g; w)``.
    """

    lower: float
    upper: float
    lower_standard_error: float
    upper_standard_error: float
    base: float
    base_standard_error: float
    log_order: float
    mutual_information: MutualInformation

    @property
    def mean_field(self) -> float:
        """The former name of ``base``, which need not be that of a mean-field guide."""
        _warn_of_former_name("mean_field", "base")
        return self.base

    @property
    def mean_field_standard_error(self) -> float:
        """The former name of ``base_standard_error``."""
        _warn_of_former_name("mean_field_standard_error", "base_standard_error")
        return self.base_standard_error


@refuse_shared_keywords
def mutual_information(
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> MutualInformation:
    """Certified interval for ``I(g; w)``, what symmetrization adds to the ELBO.

    By default several methods compete: the exact sum alone where the group is small enough, else
    importance sampling, and for groups that share sites also the chain rule with importance-sampled
    permanents and bidirectional annealed importance sampling, besides the trivial bounds 0 and
    ``log |G|``. Choosing the best on the samples that are reported would bias the certificate, so
    each half of the samples chooses the methods that are reported on the other half. Where groups
    flip signs, the chain rule alone competes; where the guide draws its sites jointly, importance
    sampling.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal, init_to_value
    >>> import pyro_perm as pp
    >>> def model():
    ...     pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([3]).to_event(1))
    >>> locs = init_to_value(values={"w": torch.tensor([-2.0, 0.0, 2.0])})
    >>> guide = AutoNormal(model, init_loc_fn=locs, init_scale=0.1)
    >>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}})
    >>> information = pp.mutual_information(guide, symmetry=symmetry, progress=False)
    >>> print(f"{information.lower:.2f} of log 3! = {information.log_order:.2f} nats")
    1.79 of log 3! = 1.79 nats

    :param guide: an :class:`AutoSymmetrized`, or a plain autoguide with ``symmetry`` given.
    :param args: arguments of the model; ``kwargs`` likewise.
    :param num_samples: number of samples of the guide, at least 4.
    :param estimator: one method in place of the portfolio.
    :param symmetry: the group, for guides that are not symmetrized.
    :param progress: whether to show a progress bar.
    :returns: the interval, in nats.
    :raises ValueError: if the estimator is no bound, or there are too few samples.
    :raises TypeError: if the guide cannot be symmetrized.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    methods = _methods(estimator)
    call = Call(guide, args, kwargs)
    with torch.no_grad(), restored(guide, args, kwargs) as writes:
        with writes:
            group = symmetry_of(call, symmetry)
        densities = [draw_density(call, group) for _ in _counted(num_samples, progress)]
        return certify(densities, methods, progress=progress).summary()


@refuse_shared_keywords
def symmetrized_elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> SymmetrizedELBO:
    """Certified interval for ``ELBO(q^G) = ELBO(q) + I(g; w)``, from the same samples of ``q``.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal, init_to_value
    >>> import pyro_perm as pp
    >>> def model():
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([3]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.sum(), 1.0), obs=torch.tensor(0.5))
    >>> locs = init_to_value(values={"w": torch.tensor([-2.0, 0.0, 2.0])})
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=locs, init_scale=0.1))
    >>> elbo = pp.symmetrized_elbo(model, guide, num_samples=100, progress=False)
    >>> print(f"{elbo.base:.1f} + {elbo.mutual_information.lower:.1f} = {elbo.lower:.1f}")
    -10.5 + 1.8 = -8.7

    :param model: the model; runs once a sample, not vectorized.
    :param guide: see :func:`mutual_information`, as are the other parameters.
    :returns: the interval, in nats.
    :raises ValueError: if the estimator is no bound, or there are too few samples.
    :raises TypeError: if the guide cannot be symmetrized.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    methods = _methods(estimator)
    call = Call(guide, args, kwargs)
    densities, values, scales = [], [], []
    with torch.no_grad(), restored(model, guide, args, kwargs) as writes:
        with writes:
            group = symmetry_of(call, symmetry, model)
            seen = _seen(replace(call, program=model), call)
        for _ in _counted(num_samples, progress):
            model_trace, guide_trace = _traces(seen, call)
            values.append(_elbo_of_base(model_trace, guide_trace))
            densities.append(read_density(guide_trace.nodes, group))
            scales.append(_scale_of(guide_trace, group))
        certificate = certify(densities, methods, progress=progress)
    base, scale = (torch.tensor(each, dtype=torch.float64) for each in (values, scales))
    lower, upper = base + scale * certificate.lower, base + scale * certificate.upper
    return SymmetrizedELBO(
        lower=lower.mean().item(),
        upper=upper.mean().item(),
        lower_standard_error=standard_error(lower),
        upper_standard_error=standard_error(upper),
        base=base.mean().item(),
        base_standard_error=standard_error(base),
        log_order=certificate.log_order,
        mutual_information=certificate.summary(),
    )


def _counted(num_samples: int, progress: bool) -> Iterator[int]:
    if not isinstance(num_samples, int) or num_samples < _FEWEST_SAMPLES:
        raise ValueError(
            f"num_samples must be an int of at least {_FEWEST_SAMPLES}, but is {num_samples!r}: "
            "each half of the samples chooses the bounds for the other"
        )
    return iter(tqdm(range(num_samples), leave=False, disable=not progress))


def _methods(estimator: Estimator | None) -> dict[str, Estimator] | None:
    if estimator is None:
        return None
    estimator = as_estimator(estimator)
    if not (estimator.is_lower_bound or estimator.is_upper_bound):
        raise ValueError(
            f"{estimator} is an approximation and bounds nothing; leave out estimator= for the "
            "certified portfolio, or give a bound such as ImportanceSampled(num_permutations=64)"
        )
    return {type(estimator).__name__: estimator}


def _seen(model: Call, guide: Call) -> FullData:
    """The model as the guide sees it, the latent sites that it leaves out summed out.

    :raises ValueError: if one of them cannot be summed out, or the guide draws others.
    """
    with looking_on():
        seen, drawn = glance(model), glance(guide)
    left_out = summed_out(seen, drawn.names(SiteKind.LATENT), "the guide draws")
    require_no_others(seen, drawn)
    program = summing_out(model.program, left_out, seen.max_plate_nesting)
    return replace(seen, call=replace(model, program=program))


def _traces(model: FullData, guide: Call) -> tuple[Any, Any]:
    """Traces of the model and the guide, with closed-form KL terms."""
    traces = ClosedFormTraces(model.call.program, guide.program)
    traces(*guide.args, **guide.kwargs)
    model_trace, guide_trace = map(prune_subsample_sites, traces.get_traces())
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace, model.max_plate_nesting)
    return model_trace, guide_trace


def _elbo_of_base(model_trace: Any, guide_trace: Any) -> float:
    log_joint = sum(term.total for term in traced_terms(model_trace))
    guide_trace.compute_log_prob()
    total = log_joint - guide_trace.log_prob_sum()
    for node in symmetrization_nodes(guide_trace.nodes):
        total = total + node["log_prob_sum"]
    return float(total)


def _scale_of(guide_trace: Any, group: SymmetryGroup) -> float:
    """The scale that handlers give to the sites of a symmetry, and so to ``I(g; w)``.

    :raises ValueError: if they do not scale them all alike.
    """
    scales = {name: guide_trace.nodes[name]["scale"] for name in group.sites}
    values = {name: torch.as_tensor(scale) for name, scale in scales.items()}
    first = next(iter(values.values()))
    if any(value.numel() > 1 or not torch.equal(value, first) for value in values.values()):
        raise ValueError(
            f"the guide scales the sites of one symmetry by different numbers, {scales}, so that "
            "none belongs to I(g; w): scale them alike"
        )
    return float(first)


def _warn_of_former_name(former: str, name: str) -> None:
    warnings.warn(
        f"SymmetrizedELBO.{former} is now called {name}, and will go with version 0.2",
        DeprecationWarning,
        stacklevel=3,
    )
