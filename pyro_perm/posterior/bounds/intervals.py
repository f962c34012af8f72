"""What symmetrization is worth: certified intervals for ``I(g; w)`` and ``ELBO(q^G)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.estimators import Estimator
from pyro_perm.first_call import as_estimator
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.bounds._table import Row, table
from pyro_perm.posterior.bounds.base_elbo import BaseELBO
from pyro_perm.posterior.bounds.certificate import Certificate, MutualInformation, certify
from pyro_perm.posterior.bounds.draws import Draw, standard_error
from pyro_perm.posterior.bounds.portfolio import Budget
from pyro_perm.posterior.bounds.shared_draws import elbos_by_shares
from pyro_perm.posterior.bounds.split_data import require_one_density
from pyro_perm.posterior.whose_symmetry import symmetry_of
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.batches import Data
from pyro_perm.program.call import Call, model_of, refuse_shared_keywords
from pyro_perm.program.restoration import restored
from pyro_perm.sampling import draw_density
from pyro_perm.symmetry import SymmetryGroup

# A guide that is trained with scales drifts along its orbits, which changes ``ELBO(q)`` alone.
REMARK_ON_SCALES = "moves along orbits"


@dataclass(frozen=True, repr=False)
class SymmetrizedELBO:
    """An interval for ``ELBO(q^G) = ELBO(q) + I(g; w)``, in nats. Prints as a short table.

    Where units are rescaled, what their scales gain is added.

    Attributes:
        lower: estimate that bounds ``ELBO(q^G)`` from below in expectation.
        upper: the same from above.
        lower_standard_error: of ``lower``.
        upper_standard_error: of ``upper``.
        base: ``ELBO(q)`` of the base guide, its KL term in closed form where it exists. It means
            nothing of a guide that was trained with scales: where on its orbit the factor of a unit
            lies changes it, and nothing else.
        base_standard_error: of ``base``.
        log_order: ``log |G|``, the most that the finite part of the group can gain.
        mutual_information: the interval for ``I(g; w)``, and the gain of scales.
        weight: of these in the ELBO: the scale that handlers give to the guide's sites, as
            those do who train on a loss per observation.
    """

    lower: float
    upper: float
    lower_standard_error: float
    upper_standard_error: float
    base: float
    base_standard_error: float
    log_order: float
    mutual_information: MutualInformation
    weight: float = 1.0

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

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds as printed, like those of ``MutualInformation.interval``."""
        lower, upper = self.mutual_information.interval
        base = self.base + self.weight * self.mutual_information.scales
        return base + self.weight * lower, base + self.weight * upper

    @property
    def _remark_on_base(self) -> str:
        return REMARK_ON_SCALES if self.mutual_information.scales else ""

    def __repr__(self) -> str:
        information = self.mutual_information
        lower, upper = self.interval
        rows = [
            Row("ELBO(q)", self.base, self.base_standard_error, self._remark_on_base),
            Row("ELBO(q^G), lower bound", lower, self.lower_standard_error),
            Row("ELBO(q^G), upper bound", upper, self.upper_standard_error),
            *information.rows,
        ]
        return table(self.log_order, information.num_samples, rows, information.skipped)


@refuse_shared_keywords
def mutual_information(
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> MutualInformation:
    """Certified interval for ``I(g; w)``, what symmetrization adds to the ELBO.

    By default several methods compete: the exact sum alone where the group is small enough, else
    importance sampling, and for groups that share sites also the chain rule with importance-sampled
    permanents and bidirectional annealed importance sampling, besides the trivial bounds 0 and
    ``log |G|``. They are tried on a few samples that are not reported, from the cheapest on, until
    the interval is narrower than it is noisy; the best then bound the samples that are reported.
    The result says what was skipped: given as ``estimator``, it may narrow the interval. Where
    groups do more than permute units, the chain rule alone competes; where the guide draws its
    sites jointly, importance sampling.

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
    >>> information
    64 samples, in nats; log |G| = 1.79
      I(g; w), lower bound 1.79 +- 0.00  exact
      I(g; w), upper bound 1.79 +- 0.00  exact

    :param guide: an :class:`AutoSymmetrized`, or with ``symmetry`` given any guide that the losses
        take: an autoguide, or a function that samples independent Normals.
    :param args: arguments of the model; ``kwargs`` likewise. In their place, a loader: see
        :func:`symmetrized_elbo`. Its first batch is enough, for ``I(g; w)`` is the guide's alone.
    :param num_samples: number of samples of the guide, at least 4.
    :param estimator: one method in place of the portfolio.
    :param symmetry: the group, for guides that are not symmetrized.
    :param max_seconds: about how long it may take. All samples are drawn in any case; what would
        then take too long is skipped, and the trivial bounds remain where nothing is left.
    :param progress: whether to show a progress bar.
    :returns: the interval, in nats.
    :raises ValueError: if the estimator is no bound, or does not serve the guide; if there are too
        few samples, or ``max_seconds`` is not positive.
    :raises TypeError: if the guide cannot be symmetrized.
    :raises FloatingPointError: if the guide's parameters have diverged.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    estimators, budget = _bounding(estimator), Budget(max_seconds)
    data = Data.of(guide, args, kwargs)
    with torch.no_grad(), restored(guide, args, kwargs) as writes:
        call = data.call(guide)
        with writes:
            group = symmetry_of(call, symmetry)
            require_one_density(guide, data, group)
            priors = _priors_of(call, group)

        def draw() -> Draw:
            return Draw(draw_density(call, group, priors))

        certificate = certify(draw, num_samples, estimators, budget=budget, progress=progress)
    return certificate.summary()


@refuse_shared_keywords
def symmetrized_elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 64,
    estimator: Estimator | None = None,
    symmetry: PermutationSymmetry | None = None,
    max_seconds: float | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> SymmetrizedELBO:
    """Certified interval for ``ELBO(q^G) = ELBO(q) + I(g; w)``, from the same samples of ``q``.

    The interval for ``I(g; w)`` need not be narrower than the noise of the ELBO: see
    :func:`mutual_information` for what this spares.

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

    :param model: the model; runs once a sample, not vectorized. Latent sites that the guide leaves
        out are summed out, where they are marked with ``infer={"enumerate": "parallel"}``.
    :param guide: see :func:`mutual_information`, as are the other parameters.
    :param args: arguments of the model and the guide, all data; ``kwargs`` likewise. Plates that
        the model subsamples itself run through all of their rows. Data that do not fit one batch
        come from a loader in place of the arguments: a ``DataLoader``, or anything else that can be
        read again and gives tuples of arguments, each row of the data once. Each batch serves all
        samples; what lies in the plate of the rows is added up over the batches, and all else
        counts once. That plate is the one larger than a batch, ``pyro.plate("data", size,
        subsample_size=len(x))``, or of the batch's size around the observations.
    :param executor: runs the model at the draws in other processes, as :func:`evaluate_each` does:
        the numbers are those of this process. A model that draws random numbers runs here.
    :returns: the interval, in nats.
    :raises ValueError: as :func:`mutual_information`; if the guide leaves out a latent site that
        cannot be summed out, or draws what is none; if a plate has more rows than the arguments, or
        the batches of a loader do not have each of its rows once; as ``Trace_ELBO``, if a site is
        batched along other dimensions than its plates'.
    :raises TypeError: if the guide cannot be symmetrized.
    :raises FloatingPointError: if the guide's parameters have diverged.
    :raises RuntimeError: if the sides cross by more than their error, which is a bug.
    """
    found = certified_elbo(
        model,
        guide,
        Data.of(model, args, kwargs),
        num_samples=num_samples,
        estimator=estimator,
        symmetry=symmetry,
        max_seconds=max_seconds,
        executor=executor,
        progress=progress,
    )
    certificate = found.certificate
    return SymmetrizedELBO(
        lower=found.lower.mean().item(),
        upper=found.upper.mean().item(),
        lower_standard_error=standard_error(found.lower),
        upper_standard_error=standard_error(found.upper),
        base=found.base.mean().item(),
        base_standard_error=standard_error(found.base),
        log_order=certificate.log_order,
        mutual_information=certificate.summary(),
        weight=found.weight,
    )


class CertifiedELBO(NamedTuple):
    """Bounds on ``ELBO(q^G)`` draw by draw, each of shape ``(num_samples,)``, in nats.

    Attributes:
        certificate: for ``I(g; w)``, and the gain of scales.
        weight: of these in the ELBO.
        group: that the bounds are over.
    """

    certificate: Certificate
    weight: float
    group: SymmetryGroup

    @property
    def base(self) -> Tensor:
        """Integrands of ``ELBO(q)``."""
        return self.certificate.elbos

    @property
    def lower(self) -> Tensor:
        """Integrands whose average bounds ``ELBO(q^G)`` from below in expectation."""
        return self.base + self.weight * (self.certificate.scales + self.certificate.lower)

    @property
    def upper(self) -> Tensor:
        """The same from above."""
        return self.base + self.weight * (self.certificate.scales + self.certificate.upper)


def certified_elbo(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    *,
    num_samples: int,
    estimator: Estimator | None,
    symmetry: PermutationSymmetry | None,
    max_seconds: float | None,
    executor: Executor | None = None,
    progress: bool,
    draws_from: Callable[..., Any] | None = None,
) -> CertifiedELBO:
    """What :func:`symmetrized_elbo` averages.

    :param executor: of processes that run the model at the draws.
    :param draws_from: a guide of the same density to draw from, such as the base of a symmetrized
        one; by default the guide itself.
    """
    estimators, budget = _bounding(estimator), Budget(max_seconds)
    arguments = data.loader, data.inputs.args, data.inputs.kwargs
    with torch.no_grad(), restored(model, guide, *arguments) as writes:
        with writes:
            group = symmetry_of(data.call(guide), symmetry, model)
            require_one_density(guide, data, group)
            source = BaseELBO.of(model, draws_from or guide, data, group)
        known: Sequence[float] = ()
        if executor is not None:
            known = elbos_by_shares(model, draws_from or guide, data, group, num_samples, executor)
        draw = source.draws(num_samples, known=known, progress=progress).__next__
        certificate = certify(draw, num_samples, estimators, budget=budget, progress=progress)
    return CertifiedELBO(certificate, source.weight, group)


def _priors_of(guide: Call, group: SymmetryGroup) -> PriorReader | None:
    """Reads priors off the guide's model.

    :raises ValueError: if the guide does not know it.
    """
    if not group.open_groups:
        return None
    model = model_of(guide.program) if isinstance(guide.program, AutoGuide) else None
    if model is None:
        raise ValueError(
            f"group '{group.open_groups[0]}' rescales its units, which takes the priors of their "
            "sites, but the guide does not know its model: use symmetrized_elbo(model, guide, ...),"
            " whose result has the mutual information"
        )
    return PriorReader(model, group)


def _bounding(estimator: Estimator | None) -> Sequence[Estimator] | None:
    """The one estimator that is to bound ``I``, or None for those that compete."""
    if estimator is None:
        return None
    estimator = as_estimator(estimator)
    if not (estimator.is_lower_bound or estimator.is_upper_bound):
        raise ValueError(
            f"{estimator} is an approximation and bounds nothing; leave out estimator= for the "
            "certified portfolio, or give a bound such as ImportanceSampled(num_permutations=64)"
        )
    return [estimator]


def _warn_of_former_name(former: str, name: str) -> None:
    warnings.warn(
        f"SymmetrizedELBO.{former} is now called {name}, and will go with version 0.2",
        DeprecationWarning,
        stacklevel=3,
    )
