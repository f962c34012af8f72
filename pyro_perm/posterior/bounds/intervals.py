"""What symmetrization is worth: certified intervals for ``I(g; w)`` and ``ELBO(q^G)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from tqdm import tqdm

from pyro_perm.closed_form import ClosedFormTraces
from pyro_perm.density.base_sites import read_density
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.estimators import Estimator
from pyro_perm.first_call import as_estimator, verified_symmetry
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds.portfolio import MutualInformation, certify, standard_error
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import LOG_RATIO_SITE, SymmetrizeMessenger

_FEWEST_SAMPLES = 4


@dataclass(frozen=True)
class SymmetrizedELBO:
    """An interval for ``ELBO(q^G) = ELBO(q) + I(g; w)``, in nats.

    Attributes:
        lower: estimate that bounds ``ELBO(q^G)`` from below in expectation.
        upper: the same from above.
        lower_standard_error: of ``lower``.
        upper_standard_error: of ``upper``.
        mean_field: ``ELBO(q)``, its KL term in closed form where it exists.
        mean_field_standard_error: of ``mean_field``.
        log_order: ``log |G|``, the most that symmetrization can gain.
        mutual_information: the interval for ``I(g; w)``.
    """

    lower: float
    upper: float
    lower_standard_error: float
    upper_standard_error: float
    mean_field: float
    mean_field_standard_error: float
    log_order: float
    mutual_information: MutualInformation


def mutual_information(
    guide: AutoGuide,
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
    act on each unit by itself, as flips do, the chain rule alone competes; where the guide draws
    its sites jointly, importance sampling.

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
    group = symmetry_of(guide, symmetry, None, args, kwargs)
    with torch.no_grad():
        densities = [
            draw_density(guide, group, args, kwargs) for _ in _counted(num_samples, progress)
        ]
        return certify(densities, methods, progress=progress).summary()


def symmetrized_elbo(
    model: Callable[..., Any],
    guide: AutoGuide,
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
    >>> print(f"{elbo.mean_field:.1f} + {elbo.mutual_information.lower:.1f} = {elbo.lower:.1f}")
    -10.5 + 1.8 = -8.7

    :param model: the model; runs once a sample, not vectorized.
    :param guide: see :func:`mutual_information`, as are the other parameters.
    :returns: the interval, in nats.
    :raises ValueError: if the estimator is no bound, or there are too few samples.
    :raises TypeError: if the guide cannot be symmetrized.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    methods = _methods(estimator)
    group = symmetry_of(guide, symmetry, model, args, kwargs)
    loss, densities, values = _MeanFieldELBO(), [], []
    with torch.no_grad():
        for _ in _counted(num_samples, progress):
            model_trace, guide_trace = next(loss._get_traces(model, guide, args, kwargs))
            values.append(_elbo_of_base(model_trace, guide_trace))
            densities.append(read_density(guide_trace.nodes, group))
        certificate = certify(densities, methods, progress=progress)
    mean_field = torch.tensor(values, dtype=torch.float64)
    lower, upper = mean_field + certificate.lower, mean_field + certificate.upper
    return SymmetrizedELBO(
        lower=lower.mean().item(),
        upper=upper.mean().item(),
        lower_standard_error=standard_error(lower),
        upper_standard_error=standard_error(upper),
        mean_field=mean_field.mean().item(),
        mean_field_standard_error=standard_error(mean_field),
        log_order=certificate.log_order,
        mutual_information=certificate.summary(),
    )


def draw_density(
    guide: AutoGuide, symmetry: SymmetryGroup, args: Any, kwargs: Any
) -> FactorizedDensity:
    """The base guide's density, with one draw from it."""
    with poutine.block(), poutine.mask(mask=False), SymmetrizeMessenger() as base:
        guide(*args, **kwargs)
    return read_density(base.sites, symmetry)


class _MeanFieldELBO(Trace_ELBO):
    """Traces with closed-form KL terms, one sample at a time."""

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        traces: tuple[Any, Any] = super()._get_trace(
            model, ClosedFormTraces(model, guide), args, kwargs
        )
        return traces


def _elbo_of_base(model_trace: Any, guide_trace: Any) -> float:
    total = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    if LOG_RATIO_SITE in guide_trace.nodes:
        total = total + guide_trace.nodes[LOG_RATIO_SITE]["log_prob_sum"]
    return float(total)


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


def symmetry_of(
    guide: AutoGuide,
    symmetry: PermutationSymmetry | None,
    model: Callable[..., Any] | None,
    args: Any,
    kwargs: Any,
) -> SymmetryGroup:
    """The group that the guide or the caller brings, known to fit the model."""
    if not isinstance(guide, AutoGuide):
        raise TypeError(
            f"guide must be an AutoSymmetrized or an AutoNormal, but is a {type(guide).__name__}"
        )
    if not isinstance(guide, AutoSymmetrized):
        if model is None and guide._model is None:
            raise ValueError(
                "the guide was copied or pickled, and Pyro drops its model then: use "
                "symmetrized_elbo(model, guide, ...), whose result has the mutual information"
            )
        model = guide.model if model is None else model
        return verified_symmetry(symmetry, model, args, kwargs).group
    if symmetry is not None and symmetry != guide.symmetry:
        raise ValueError("the guide brings its own symmetry: leave out symmetry=")
    if guide.prototype_trace is None:
        with poutine.block(), torch.no_grad():
            guide(*args, **kwargs)
    assert guide.symmetry is not None
    return guide.symmetry.group
