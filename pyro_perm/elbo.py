"""An ELBO whose KL term is in closed form where it exists, and corrected for symmetry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pyro import poutine

from pyro_perm.closed_form import ClosedFormTrace_ELBO
from pyro_perm.density.base_guides import require_symmetrizable
from pyro_perm.estimators import Estimator
from pyro_perm.first_call import (
    as_estimator,
    as_symmetry,
    is_group_of,
    verified_symmetry,
    warn_if_coinciding,
    watch_for_shared_parameters,
)
from pyro_perm.independence import GuideProbe
from pyro_perm.log_ratio import LogRatio
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.call import Call
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import SymmetrizeMessenger, add_log_ratio, log_ratio_nodes

Program = Callable[..., Any]


class TraceSymmetrized_ELBO(ClosedFormTrace_ELBO):
    r"""``ELBO(q^G) = E_q[log p(D | w)] - KL(q || p) + I(g; w)`` (Gelberg et al. 2024, Section 4).

    ``KL(q || p)`` is in closed form at sites whose prior is Normal and that the guide draws from a
    Normal of their own, and a Monte Carlo estimate elsewhere and where units are rescaled;
    ``I(g; w)`` comes from the estimator.
    It is given to ``SVI`` as any other loss. Without data the posterior is the prior, and units far
    apart gain all of ``log n!``:

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal, init_to_value
    >>> import pyro_perm as pp
    >>> def model():
    ...     pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([3]).to_event(1))
    >>> locs = init_to_value(values={"w": torch.tensor([-2.0, 0.0, 2.0])})
    >>> base = AutoNormal(model, init_loc_fn=locs, init_scale=0.1)
    >>> kl = 0.5 * (3 * 0.1**2 + 8 - 3) - 3 * torch.tensor(0.1).log()
    >>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}})
    >>> kl - pp.TraceSymmetrized_ELBO(symmetry=symmetry).loss(model, base)  # I(g; w) = log 3!
    tensor(1.7918)

    An :class:`AutoSymmetrized` guide brings its own symmetry and estimator, and is corrected once:

    >>> kl - pp.TraceSymmetrized_ELBO().loss(model, pp.AutoSymmetrized(base, symmetry))
    tensor(1.7918)

    :param symmetry: the permutation group of the model, for guides that are not symmetrized; None
        discovers it at the first call. It is verified at the first call for each model.
    :param estimator: how ``log q^G`` is estimated, for guides that are not symmetrized.
    :param num_particles: number of samples of the guide.
    :param max_plate_nesting: see :class:`~pyro.infer.ELBO`.
    :param vectorize_particles: see :class:`~pyro.infer.ELBO`.
    :param kwargs: the other parameters of :class:`~pyro.infer.ELBO`.
    :raises TypeError: for guides that are effect handlers (``AutoMessenger``).
    :raises ValueError: if the symmetry does not fit the model, or contradicts the guide's.
    """

    def __init__(
        self,
        *,
        symmetry: PermutationSymmetry | None = None,
        estimator: Estimator | None = None,
        num_particles: int = 1,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            **kwargs,
        )
        self.symmetry = as_symmetry(symmetry)
        self.estimator = None if estimator is None else as_estimator(estimator)
        # One for all steps: it remembers what was far apart at the last one.
        self._estimator_in_use = as_estimator(estimator)
        self._verified_on: Program | None = None
        self._verified: SymmetryGroup | None = None
        self._probed: Program | None = None
        self.priors: PriorReader | None = None

    def log_ratios(self, model: Program, guide: Program, args: Any, kwargs: Any) -> list[LogRatio]:
        """What a guide is corrected by, one for each symmetrized part, all checks of it done."""
        trace = poutine.trace(self._correct(model, guide)).get_trace(*args, **kwargs)
        return [node["fn"] for node in log_ratio_nodes(trace.nodes).values()]

    def _get_traces(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> Iterator[tuple[Any, Any]]:
        require_symmetrizable(poutine.unwrap(guide))
        yield from super()._get_traces(model, self._correct(model, guide), args, kwargs)

    def _correct(self, model: Program, guide: Program) -> Program:
        """The guide, with the correction in its trace unless it has one already."""

        def corrected(*args: Any, **kwargs: Any) -> Any:
            with SymmetrizeMessenger() as base, watch_for_shared_parameters(poutine.unwrap(guide)):
                result = guide(*args, **kwargs)
            symmetrized = log_ratio_nodes(base.sites)
            if symmetrized:
                self._require_consistent([node["fn"] for node in symmetrized.values()])
            elif base.counts and poutine.get_mask() is not False:
                symmetry = self._symmetry_of(model, guide, base.sites, args, kwargs)
                assert self.priors is not None
                priors = self.priors(base.sites, args, kwargs)
                add_log_ratio(base, symmetry, self._estimator_in_use, priors)
            return result

        return corrected

    def _symmetry_of(
        self, model: Program, guide: Program, sites: Any, args: Any, kwargs: Any
    ) -> SymmetryGroup:
        if self._verified is None or self._verified_on != model:
            self._verified = verified_symmetry(self.symmetry, Call(model, args, kwargs)).group
            self._verified_on, self._probed = model, None
            self.priors = PriorReader(model, self._verified)
        # Handlers around the guide change no distribution that it draws from.
        program = poutine.unwrap(guide)
        if self._probed != program:
            GuideProbe(Call(guide, args, kwargs), self._verified).require_independent_sites()
            warn_if_coinciding(sites, self._verified)
            self._probed = program
        return self._verified

    def _require_consistent(self, log_ratios: Sequence[LogRatio]) -> None:
        for log_ratio in log_ratios:
            symmetry, estimator = log_ratio.density.symmetry, log_ratio.estimator
            if self.symmetry is not None and not is_group_of(self.symmetry, symmetry):
                raise ValueError(
                    "the guide is symmetrized over another symmetry than the loss was given:\n"
                    f"guide: {symmetry}\nloss: {self.symmetry}\nleave out the loss's symmetry="
                )
            if self.estimator is not None and self.estimator != estimator:
                raise ValueError(
                    f"the guide is symmetrized with {estimator}, but the loss was given "
                    f"{self.estimator}; leave out the loss's estimator="
                )
