"""``log q^G(w) - log q(w)``, as the density of an auxiliary site of the guide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.ops.provenance import track_provenance
from torch import Tensor

from pyro_perm.compiled.recorder import active_recorder
from pyro_perm.density.density import Density
from pyro_perm.estimators import Estimator
from pyro_perm.finite_estimate import finite_estimate
from pyro_perm.permanent._tracing import is_tracing

# No effect handler, which would look at every message of each step.
_is_asked_for: ContextVar[bool] = ContextVar("log_ratio_is_asked_for", default=True)


@contextmanager
def without_log_ratios() -> Iterator[None]:
    """A context in which log-ratios are zero where their estimators draw no random numbers.

    For those who draw from a symmetrized guide, and bound what symmetrization adds by themselves.
    """
    token = _is_asked_for.set(False)
    try:
        yield
    finally:
        _is_asked_for.reset(token)


class LogRatio(Unit):
    """The density ``q^G(w) / q(w)`` of a site whose value is empty.

    The value requires grad where the draws ``w`` do. So a trace that detaches its values, as those
    of wake-sleep losses are, has the log-ratio at draws held fixed.

    :param density: the base guide's density, with its draw.
    :param estimator: how the log-ratio is estimated.
    :param dtype: that of the draw.
    :param without_rsample: sites that were drawn without a reparametrized sample.
    :param log_prior_change: what the log-density of the prior changes by where the draw is
        rescaled, in nats, shape ``(*batch)``.
    :param provenance: what the draw depends on, where Pyro keeps track of that.
    :param log_factor: the log-ratio in nats, shape ``(*batch, *plates of size one)``, where it is
        known.
    :raises FloatingPointError: if the estimate is not finite.
    """

    has_rsample = True

    def __init__(
        self,
        density: Density,
        estimator: Estimator,
        *,
        dtype: torch.dtype,
        without_rsample: Sequence[str] = (),
        log_prior_change: Tensor | None = None,
        provenance: frozenset[str] = frozenset(),
        log_factor: Tensor | None = None,
    ) -> None:
        self.density, self.estimator, self.without_rsample = density, estimator, without_rsample
        self._dtype, self._provenance = dtype, provenance
        self._log_prior_change = log_prior_change
        super().__init__(
            self._log_ratio_of(density) if log_factor is None else log_factor, validate_args=False
        )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LogRatio:
        """The same with another batch shape."""
        return LogRatio(
            self.density,
            self.estimator,
            dtype=self._dtype,
            without_rsample=self.without_rsample,
            log_prior_change=self._log_prior_change,
            provenance=self._provenance,
            log_factor=self.log_factor.expand(torch.Size(batch_shape)),
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """An empty value."""
        value: Tensor = super().rsample(torch.Size(sample_shape))
        return value.requires_grad_() if self.density.draws_require_grad else value

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-ratio, shape ``(*batch)``; of detached draws if the value is detached."""
        log_prob: Tensor = super().log_prob(value)
        if value.requires_grad or not self.density.draws_require_grad:
            return log_prob
        if self.density.priors is not None and self.density.priors.require_grad:
            raise TypeError(
                "this loss holds the draws fixed, but the priors of rescaled sites depend on other "
                "draws or on parameters: use a loss that does not, such as Trace_ELBO(), or find "
                "the symmetry without scales"
            )
        return self._log_ratio_of(self.density.with_fixed_draws()).expand(log_prob.shape)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What Pyro's losses build a gradient from.

        :raises TypeError: if a site was drawn without a reparametrized sample.
        """
        if self.without_rsample:
            raise TypeError(
                f"the base guide draws site '{self.without_rsample[0]}' without a reparametrized "
                "sample, and the score-function term of Pyro's losses leaves out what is no site "
                "of the model, here log q^G - log q: the gradient would be wrong. Use "
                "loss=TraceSymmetrized_ELBO(), which counts it, or a base guide with rsample"
            )
        return super().score_parts(x, *args, **kwargs)

    def _log_ratio_of(self, density: Density) -> Tensor:
        symmetry = density.symmetry
        log_ratio = log_ratio_of(density, self.estimator)
        if self._log_prior_change is not None:
            log_ratio = log_ratio + self._log_prior_change
        log_ratio = log_ratio.to(self._dtype)
        # Particles have their plates to the left of the model's.
        if log_ratio.dim():
            log_ratio = log_ratio[(..., *[None] * symmetry.num_plates)]
        return track_provenance(log_ratio, self._provenance) if self._provenance else log_ratio


def log_ratio_of(density: Density, estimator: Estimator) -> Tensor:
    """``log q^G(w) - log q(w)`` of every draw, shape ``(*batch)``, in nats.

    :raises FloatingPointError: if the estimate is not finite.
    :raises TypeError: if units are rescaled under :func:`torch.jit.trace`.
    """
    if density.symmetry.open_groups and is_tracing():
        raise TypeError(
            f"group '{density.symmetry.open_groups[0]}' rescales its units, whose integrals "
            "torch.jit.trace cannot record: use Trace_ELBO() or TraceSymmetrized_ELBO(), or find "
            "the symmetry without scales"
        )
    if estimator.is_deterministic and not _is_asked_for.get():
        return torch.zeros(density.batch_shape, dtype=torch.float64, device=density.device)
    recorder = active_recorder()
    if recorder is not None:
        return recorder.log_ratio(density, estimator)  # Refuses others.
    return finite_estimate(density, estimator)
