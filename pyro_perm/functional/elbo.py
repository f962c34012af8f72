r"""ELBOs without traces, for guides that draw each site by itself from a Normal.

A training step of a small network spends most of its time in effect handlers: a trace of the guide
and one of the model, at each site. Here the guide is its parameters, the model is run once under
one light handler, and Kullback-Leibler divergences from Normal priors are in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Distribution

from pyro_perm.compiled.graph_loss import graph_loss
from pyro_perm.compiled.recorder import Recorder
from pyro_perm.density.base_guides import density_of, normals_of, remove_padding
from pyro_perm.density.base_guides.reader import Drawn, Normals
from pyro_perm.density.gaussians import as_normal, drop_expanded
from pyro_perm.density.rescaled_priors import Priors, elementwise
from pyro_perm.elbo import TraceSymmetrized_ELBO
from pyro_perm.estimators import Estimator
from pyro_perm.functional.independent_draws import Draw, IndependentDraws
from pyro_perm.functional.latent_weight import latent_weight
from pyro_perm.functional.local_layers import local_layers
from pyro_perm.functional.normal_kl import fused_normal_kl, normal_kl
from pyro_perm.functional.substitution import NeedsTraces, Substitution
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.log_ratio import LogRatio, log_ratio_of
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.prior_reader import PriorReader
from pyro_perm.program.log_prob_shapes import LogProbShapes
from pyro_perm.symmetry import SymmetryGroup

Program = Callable[..., Any]
Draws = Mapping[str, Draw]
DrawnPriors = Mapping[str, Distribution]
Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FunctionalMeanField_ELBO(ELBO):
    r"""``ELBO(q) = E_q[log p(D | w)] - KL(q || p)`` of an ``AutoNormal``, without traces.

    The divergence is in closed form at sites with a Normal prior, whose parameters may depend on
    other sites, and a Monte Carlo estimate elsewhere. Value and gradient are those of
    ``pyro.infer.Trace_ELBO`` in expectation, at a fraction of its cost for small models. It is
    given to ``SVI`` as any other loss, or, faster, called with model and guide, for an optimizer
    of PyTorch:

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model(x):
    ...     mean = pyro.sample("mean", pyro.distributions.Normal(0.0, 1.0))
    ...     pyro.sample("y", pyro.distributions.Normal(mean, 1.0).expand([3]).to_event(1), obs=x)
    >>> x = torch.ones(3)
    >>> loss = pp.FunctionalMeanField_ELBO()(model, AutoNormal(model))
    >>> loss(x).backward()  # The first call makes the guide's parameters.
    >>> optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)

    What it does not serve it refuses: guides whose reader does not tell the Normals of all sites
    without a run, as that of ``AutoNormal`` does; latent sites in subsampled plates, summed out, or
    weighed by handlers such as ``poutine.scale``.

    :param num_particles: number of samples of the guide.
    :param vectorize_particles: whether to run the model once for all of them, under
        :func:`torch.func.vmap`. It sees one sample, as always; it must not write in place, nor
        decide by the values of tensors. Its distributions are validated at the first call only.
    """

    def __init__(self, *, num_particles: int = 1, vectorize_particles: bool = False) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self._settled_for: tuple[Program | None, Program | None] = None, None
        self._sites: IndependentDraws
        self._recorder: Recorder
        # Sites whose divergence is left to Monte Carlo, as TraceSymmetrized_ELBO leaves them.
        self._sampled: frozenset[str] = frozenset()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO, in nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the ELBO in nats; its gradient is added to that of parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        warn_if_nan(loss, "loss")
        return loss.item()

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An estimate of minus the ELBO in nats, for autograd.

        :raises TypeError: if the guide is of another kind, or the model has latent sites that are
            not served; names it.
        :raises ValueError: at the first call, as of ``Trace_ELBO``, if a site of the model is
            batched along other dimensions than its plates'.
        """
        is_settled = self._settled_for[0] is model and self._settled_for[1] is guide
        if torch.compiler.is_dynamo_compiling():
            recorder = self._recorder if is_settled else None
            return graph_loss(recorder, self.differentiable_loss, (model, guide), args, kwargs)
        if not is_settled:
            self._settle(model, guide, args, kwargs)
            with LogProbShapes():
                loss = self._estimate(model, *args, **kwargs)
            self._recorder = Recorder(partial(self._estimate, model), model, guide)
            self._settled_for = model, guide
            return loss
        return self._estimate(model, *args, **kwargs)

    def _estimate(self, model: Program, *args: Any, **kwargs: Any) -> Tensor:
        run = _LogJoint(self._sites, self._sampled, model, args, kwargs)
        if self.num_particles > 1 and self.vectorize_particles:
            draws = self._sites.draw([self.num_particles])
            with pyro.validation_enabled(False):
                terms = run.vectorized(draws)
            priors = self._shared_priors(args, kwargs)
            return _loss(terms, self._correction(draws, priors)).mean()
        losses = []
        for _ in range(self.num_particles):
            draws = self._sites.draw()
            losses.append(_loss(run(draws), self._correction(draws, run.priors)))
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _get_trace(self, *args: Any) -> Any:
        raise NeedsTraces(f"{type(self).__name__} has no traces")

    def _settle(self, model: Program, guide: Any, args: Any, kwargs: Any) -> None:
        """What the first call finds out, for later ones to rely on."""
        if isinstance(guide, AutoSymmetrized):
            raise TypeError(
                f"{type(self).__name__} is the ELBO of a guide that is not symmetrized: use "
                "FunctionalSymmetrized_ELBO, or give it the base guide"
            )
        normals = self._normals_of(guide)
        guide(*args, **kwargs)
        self._prepare(IndependentDraws(guide, normals), model, args, kwargs)

    def _normals_of(self, guide: Any) -> Callable[[], Normals]:
        """What tells the Normals that a guide draws from, which need not have run.

        :raises NeedsTraces: if there is nothing that does; names the guide.
        """
        normals = normals_of(guide)
        if normals is None:
            raise NeedsTraces(
                f"{type(self).__name__} draws from the Normals of a guide that has one for each "
                "site, as AutoNormal does, without running it, but the guide is a "
                f"{type(guide).__name__}"
            )
        return normals

    def _prepare(self, sites: IndependentDraws, model: Program, args: Any, kwargs: Any) -> None:
        self._sites = sites
        if self.vectorize_particles:  # Where tensors are batched, distributions do not validate.
            with torch.no_grad():
                _LogJoint(self._sites, self._sampled, model, args, kwargs)(self._sites.draw())

    def _shared_priors(self, args: Any, kwargs: Any) -> DrawnPriors:
        """Priors that all particles share, of the sites whose priors the correction depends on.

        :raises ValueError: if each particle has its own.
        """
        return {}

    def _correction(self, draws: Draws, priors: DrawnPriors) -> Tensor | float:
        """What the draws add to the loss besides, shape ``(*batch)``.

        :param priors: of the sites, given the draws.
        """
        return 0.0


class FunctionalSymmetrized_ELBO(FunctionalMeanField_ELBO):
    r"""``ELBO(q^G) = E_q[log p(D | w)] - KL(q || p) + I(g; w)``, without traces.

    Value and gradient are those of :class:`TraceSymmetrized_ELBO` at the same draws; with a small
    network, a step costs about half of a plain ``Trace_ELBO`` step. The guide is an
    ``AutoNormal``, or one symmetrized. Draws are not permuted, since the model does not change
    under the group.

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model():
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([4]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.tanh().sum(), 0.1), obs=torch.tensor(1.0))
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    >>> loss = pp.FunctionalSymmetrized_ELBO()(model, guide)
    >>> loss().backward()  # The first call finds the symmetry, and makes the guide's parameters.
    >>> optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)

    :param symmetry: the permutation group of the model, for guides that are not symmetrized; None
        discovers it at the first call. It is verified at the first call for each model.
    :param estimator: how ``log q^G`` is estimated, for guides that are not symmetrized.
    :param num_particles: number of samples of the guide.
    :param vectorize_particles: see :class:`FunctionalMeanField_ELBO`.
    """

    def __init__(
        self,
        *,
        symmetry: PermutationSymmetry | None = None,
        estimator: Estimator | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = False,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self._traced = TraceSymmetrized_ELBO(symmetry=symmetry, estimator=estimator)
        self._corrections: list[_Correction] = []
        self._priors: PriorReader | None = None

    def _settle(self, model: Program, guide: Any, args: Any, kwargs: Any) -> None:
        base = guide.base if isinstance(guide, AutoSymmetrized) else guide
        normals = self._normals_of(base)
        log_ratios = self._traced.log_ratios(model, guide, args, kwargs)
        self._corrections = [_Correction.like(log_ratio) for log_ratio in log_ratios]
        self._priors = guide.priors if isinstance(guide, AutoSymmetrized) else self._traced.priors
        self._sampled = frozenset().union(*(each.rescaled for each in self._corrections))
        self._prepare(IndependentDraws(base, normals), model, args, kwargs)

    def _shared_priors(self, args: Any, kwargs: Any) -> DrawnPriors:
        if self._priors is None or not self._priors.sites:
            return {}
        if not self._priors.are_constant:
            raise ValueError(
                "the priors of rescaled sites depend on other sites or parameters, so that each "
                "particle has its own: leave out vectorize_particles=True"
            )
        priors = self._priors({}, args, kwargs)
        return {} if priors is None else priors.sites

    def _correction(self, draws: Draws, priors: DrawnPriors) -> Tensor | float:
        return sum(correction(draws, priors) for correction in self._corrections)


class _Terms(NamedTuple):
    """What an ELBO is made of, in nats.

    Attributes:
        log_likelihood: ``log p(D | w)``, shape ``(*batch)``.
        divergence: ``KL(q || p)``, with ``log q(w) - log p(w)`` where that has no closed form.
    """

    log_likelihood: Tensor
    divergence: Tensor


def _loss(terms: _Terms, correction: Tensor | float) -> Tensor:
    return latent_weight() * (terms.divergence + correction) - terms.log_likelihood


class _LogJoint:
    """Runs a model at draws of a guide.

    :param sites: what the guide draws.
    :param sampled: names of sites whose divergence is not to be in closed form.
    :param model: the model.
    :param args: its arguments; ``kwargs`` likewise.

    Attributes:
        priors: site -> its prior in the last run.
    """

    def __init__(
        self,
        sites: IndependentDraws,
        sampled: frozenset[str],
        model: Program,
        args: Any,
        kwargs: Any,
    ) -> None:
        self._sampled = sampled
        self._sites, self._model, self._args, self._kwargs = sites, model, args, kwargs
        self.priors: DrawnPriors = {}

    def __call__(self, draws: Draws, kl: Divergence = fused_normal_kl) -> _Terms:
        """The terms at one draw of each site.

        :param kl: divergence of Normals, from their locs and scales.
        """
        values = self._sites.values({name: draw.unconstrained for name, draw in draws.items()})
        layers = local_layers()
        if layers is not None:
            for name, draw in draws.items():
                layers.add(values[name], draw.loc, draw.scale)
        with Substitution(values) as met:
            self._model(*self._args, **self._kwargs)
        met.require_all_met()
        self.priors = met.priors
        divergences = []
        for name, draw in draws.items():
            prior = None if name in self._sampled else as_normal(met.priors[name])
            if prior is None:
                log_prior = met.priors[name].log_prob(values[name]).sum()
                divergences.append(self._log_density(name, draw, values[name]) - log_prior)
            else:
                parameters = (drop_expanded(tensor, 0) for tensor in (prior.loc, prior.scale))
                divergences.append(kl(draw.loc, draw.scale, *parameters))
        divergence = sum(divergences[1:], divergences[0])
        return _Terms(sum(met.log_likelihoods, divergence.new_zeros(())), divergence)

    def vectorized(self, draws: Draws) -> _Terms:
        """The terms at many draws at once."""
        if local_layers() is not None:
            raise ValueError(
                "local reparametrization draws outputs of one particle at a time: leave out "
                "vectorize_particles=True"
            )

        def of_one(noise: Mapping[str, Tensor], unconstrained: Mapping[str, Tensor]) -> _Terms:
            one = {
                name: draw._replace(noise=noise[name], unconstrained=unconstrained[name])
                for name, draw in draws.items()
            }
            return self(one, normal_kl)

        noise = {name: draw.noise for name, draw in draws.items()}
        unconstrained = {name: draw.unconstrained for name, draw in draws.items()}
        terms: _Terms = torch.func.vmap(of_one, randomness="different")(noise, unconstrained)
        return terms

    def _log_density(self, name: str, draw: Draw, value: Tensor) -> Tensor:
        """``log q(w)`` of a site's value on its support, in nats."""
        log_volume = self._sites.log_volume(name, value, draw.unconstrained)
        log_density: Tensor = draw.log_prob().sum() - log_volume
        return log_density


class _Correction(NamedTuple):
    """What a symmetrized guide is corrected by.

    Attributes:
        symmetry: the group.
        estimator: what estimates.
        rescaled: sites that are rescaled.
    """

    symmetry: SymmetryGroup
    estimator: Estimator
    rescaled: tuple[str, ...]

    @classmethod
    def like(cls, log_ratio: LogRatio) -> _Correction:
        """As in a trace of the guide."""
        density, priors = log_ratio.density, log_ratio.density.priors
        rescaled = () if priors is None else tuple(priors.sites)
        return cls(density.symmetry, log_ratio.estimator, rescaled)

    def __call__(self, draws: Draws, priors: DrawnPriors) -> Tensor:
        """``log q^G(w) - log q(w)`` of every draw, shape ``(*batch)``, in nats.

        :param priors: of the rescaled sites, given the draws.
        """
        drawn = {
            site: remove_padding(
                Drawn(site, draw.unconstrained, draw.loc, draw.scale), site, self.symmetry
            )
            for site in self.symmetry.sites
            for draw in [draws[site]]
        }
        under = Priors({site: elementwise(priors[site]) for site in self.rescaled})
        density = density_of(drawn, self.symmetry, under if self.rescaled else None)
        dtype = draws[self.symmetry.sites[0]].loc.dtype
        return log_ratio_of(density, self.estimator).to(dtype)
