"""A guide that symmetrizes a Gaussian guide over a model's permutation group."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_perm.density.base_guides import require_symmetrizable
from pyro_perm.estimators import Estimator
from pyro_perm.first_call import (
    as_estimator,
    as_symmetry,
    verified_symmetry,
    warn_if_coinciding,
    watch_for_shared_parameters,
)
from pyro_perm.independence import GuideProbe
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program._pyro_internals import make_prototype, share_prototype
from pyro_perm.program.call import Call, refuse_shared_keywords
from pyro_perm.program.full_data import FullData, survey
from pyro_perm.program.sites import SiteKind
from pyro_perm.program.vectorized import DrawMapper
from pyro_perm.rescaled_draws import draw_rescaled, rescales_draws
from pyro_perm.sampling import (
    PosteriorDraws,
    draw_density,
    draw_guide,
    draw_symmetrized,
    looking_on,
    set_up,
)
from pyro_perm.symmetry import SymmetryGroup
from pyro_perm.trace_sites import SymmetrizeMessenger, add_log_ratio, sample_permutations


class AutoSymmetrized(AutoGuide):
    r"""The base guide, symmetrized: ``q^G(w) = 1/|G| sum_g q(g^-1 w)``.

    A draw is one of ``q``, its units permuted at random. The density of a trace is ``log q^G`` as
    the estimator has it, so that ``ELBO(q^G) = ELBO(q) + I(g; w)`` under every Pyro loss (Gelberg
    et al. 2024, Theorem 4.1). The parameters are those of the base guide. Usage:

    >>> import pyro, torch
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model():
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([4]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.tanh().sum(), 0.1), obs=torch.tensor(1.0))
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    >>> losses = [svi.step() for _ in range(10)]
    >>> guide.symmetry
    PermutationSymmetry({
        'P0': {'w': -1},
    })

    :param base: an :class:`~pyro.infer.autoguide.AutoNormal`, trained or new, or another autoguide
        that draws the symmetric sites from Normals. Where it draws them jointly, as
        :class:`~pyro.infer.autoguide.AutoMultivariateNormal` does, the estimator must be one that
        samples permutations. It becomes part of this guide.
    :param symmetry: the permutation group of the model; None discovers it at the first call. It is
        verified numerically at the first call in either case.
    :param estimator: how ``log q^G`` is estimated; :class:`~pyro_perm.Bethe` by default.
    :param permute: whether draws are permuted. Training may go without, since the model does not
        change under the group; the traced density is ``log q^G`` in either case.
    :raises TypeError: if the base guide is of a kind that cannot be symmetrized; says why.
    """

    def __init__(
        self,
        base: AutoGuide,
        symmetry: PermutationSymmetry | None = None,
        *,
        estimator: Estimator | None = None,
        permute: bool = True,
    ) -> None:
        _require_base_guide(base)
        super().__init__(base.model)
        # Assigning the attribute would take the plates out of the hands of the base guide, which
        # goes on working on its own.
        torch.nn.Module.add_module(self, "base", base)
        self.symmetry = as_symmetry(symmetry)
        self.estimator = as_estimator(estimator)
        self.permute = permute
        self._is_checked = False

    @classmethod
    def of_verified(
        cls,
        base: AutoGuide,
        symmetry: PermutationSymmetry,
        *,
        estimator: Estimator | None = None,
        permute: bool = True,
    ) -> AutoSymmetrized:
        """The guide where the first call's checks were made before: in the run that saved it.

        :param base: a base guide that has been set up.
        :param symmetry: has been verified on its model; ``estimator`` and ``permute`` as above.
        """
        guide = cls(base, symmetry, estimator=estimator, permute=permute)
        guide.priors = PriorReader(guide.model, symmetry.group)
        share_prototype(guide, base)
        guide._is_checked = True
        return guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw from ``q^G`` and account for its density.

        :returns: site name -> sampled value.
        :raises ValueError: at the first call, if the symmetry does not fit the model.
        :raises TypeError: at the first call, if the density of the base guide is not known.
        """
        if self._is_checked:
            drawn, result = self._draw(args, kwargs)
        else:
            with watch_for_shared_parameters(self.base):
                self._setup_prototype(*args, **kwargs)
                drawn, result = self._draw(args, kwargs)
            self._check(drawn, args, kwargs)
        priors = self.priors(drawn.sites, args, kwargs)
        add_log_ratio(drawn, self._group, self.estimator, priors)
        return result

    @refuse_shared_keywords
    def sample_posterior(
        self,
        num_samples: int,
        *args: Any,
        at_once: int = 64,
        progress: bool = False,
        **kwargs: Any,
    ) -> PosteriorDraws:
        """Independent draws, and ``log q^G`` of each, over all data where plates subsample.

        :param num_samples: number of draws.
        :param args: arguments of the model; ``kwargs`` likewise.
        :param at_once: how many draws to vectorize over at once; 1 needs the least memory.
        :param progress: whether to show progress bars.
        :raises ValueError: at the first call, if the symmetry does not fit the model.
        """
        call = Call(self, args, kwargs)
        set_up(call)
        with looking_on():
            full = survey(call)
        latent = full.names(SiteKind.LATENT)
        with torch.no_grad():
            return self.draw_over(full, latent, num_samples, DrawMapper(at_once, progress))

    def draw_over(
        self, full: FullData, sites: Collection[str], num_draws: int, map_draws: DrawMapper
    ) -> PosteriorDraws:
        """The same, of some sites, over the data that a survey of this guide has shown."""
        assert self.symmetry is not None
        base = replace(full, call=replace(full.call, program=self.base))
        density = draw_density(base.call, self.symmetry.group, self.priors)
        if not (density.factorizes and self.priors.are_constant):
            # The estimators decide by the numbers, which vmap forbids.
            return draw_guide(full, sites, num_draws, replace(map_draws, at_once=1))
        return draw_symmetrized(
            base, density, self.estimator, sites, num_draws, map_draws, permute=self.permute
        )

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of the base guide: of one of the equivalent modes, for ``q^G`` has them all."""
        medians: dict[str, Tensor] = self.base.median(*args, **kwargs)
        return medians

    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of the base guide: of one of the equivalent modes."""
        values: dict[str, Tensor] = self.base.quantiles(quantiles, *args, **kwargs)
        return values

    @property
    def _group(self) -> SymmetryGroup:
        assert self.symmetry is not None
        return self.symmetry.group

    def _draw(self, args: Any, kwargs: Any) -> tuple[SymmetrizeMessenger, dict[str, Tensor]]:
        permutations = {}
        if self.permute and (not self._group.open_groups or rescales_draws()):
            parameter = next(self.base.parameters(), None)
            device = None if parameter is None else parameter.device
            permutations = sample_permutations(self._group.compact_part, device)
            if self._group.open_groups:
                moves = (self._group, permutations)
                return draw_rescaled(self.base, *moves, self.priors, args, kwargs)
        with SymmetrizeMessenger(self._group, permutations) as drawn:
            return drawn, self.base(*args, **kwargs)

    def _check(self, drawn: SymmetrizeMessenger, args: Any, kwargs: Any) -> None:
        """Refuse what has no density that is read here; again at the next call if refused."""
        probe = GuideProbe(Call(self.base, args, kwargs), self._group)
        probe.require_independent_sites()
        probe.require_reparametrized_parents()
        warn_if_coinciding(drawn.sites, self._group)
        self._is_checked = True

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # The base guide first: what Pyro says about supports comes before what is found here.
        if self.base.prototype_trace is None:
            make_prototype(self.base, *args, **kwargs)
        self.symmetry = verified_symmetry(self.symmetry, Call(self.model, args, kwargs))
        self.priors = PriorReader(self.model, self._group)
        # One for both, so that a seed gives the base the same start as it has alone.
        share_prototype(self, self.base)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.master = None
        for name, part in self.base.named_modules():
            if name and isinstance(part, AutoGuide):
                part.master = weakref.ref(self.base)


def _require_base_guide(base: Any) -> None:
    require_symmetrizable(base)
    if isinstance(base, AutoSymmetrized):
        raise TypeError("the base guide is symmetrized already")
    if not isinstance(base, AutoGuide):
        raise TypeError(
            f"base must be an autoguide such as AutoNormal(model), but is a {type(base).__name__}; "
            "for a guide of your own use TraceSymmetrized_ELBO(symmetry=...)"
        )
