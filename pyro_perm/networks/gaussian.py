"""Gaussians over the parameters of a network, as guides of its Bayesian model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide import (
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroParam
from torch import Tensor, nn

from pyro_perm.networks import priors
from pyro_perm.networks.bayesian import BayesianNetwork, bayesian
from pyro_perm.networks.likelihoods import Likelihood
from pyro_perm.networks.priors import Distribution, Prior, PriorLike
from pyro_perm.program._pyro_internals import deep_setattr, name_apart

Means = Mapping[str, Tensor]


@dataclass(frozen=True)
class DenseGaussian:
    """A Gaussian over several parameters jointly.

    Attributes:
        means: name -> mean, of the parameter's shape.
        scale_tril: lower Cholesky factor of the covariance of all of them, flattened one after the
            other in the order of ``means``, shape ``(P, P)``.
    """

    means: Means
    scale_tril: Tensor

    @classmethod
    def of_covariance(cls, means: Means, covariance: Tensor) -> DenseGaussian:
        """With a covariance matrix, shape ``(P, P)``."""
        factor = torch.linalg.cholesky(covariance.double())
        return cls(means, factor.to(covariance.dtype))

    @classmethod
    def of_precision(cls, means: Means, precision: Tensor) -> DenseGaussian:
        """With a precision matrix, shape ``(P, P)``."""
        zeros = precision.new_zeros(len(precision), dtype=torch.float64)
        gaussian = torch.distributions.MultivariateNormal(
            zeros, precision_matrix=precision.double()
        )
        return cls(means, gaussian.scale_tril.to(precision.dtype))


@dataclass(frozen=True)
class LowRankGaussian:
    """A Gaussian over several parameters jointly, with covariance ``F F^T + diag(d)``.

    Attributes:
        means: name -> mean, of the parameter's shape.
        cov_factor: ``F``, shape ``(P, rank)``, rows in the order of ``means``, flattened.
        cov_diag: ``d``, shape ``(P,)``.
    """

    means: Means
    cov_factor: Tensor
    cov_diag: Tensor


Gaussian = Mapping[str, tuple[Tensor, Tensor]] | DenseGaussian | LowRankGaussian


class GaussianPosterior(NamedTuple):
    """A Bayesian network, and a Gaussian over its parameters.

    Attributes:
        model: the network with priors and likelihood; called with ``(inputs, y)``.
        guide: the Gaussian, an autoguide of the model. It may be trained further.
    """

    model: BayesianNetwork
    guide: AutoGuide


def gaussian_posterior(
    network: nn.Module,
    gaussian: Gaussian,
    *,
    prior: PriorLike = priors.standard_normal,
    likelihood: Likelihood,
    dataset_size: int | None = None,
) -> GaussianPosterior:
    """A Gaussian posterior that was found elsewhere, with the model that it is a posterior of.

    The guide takes part in all that guides do: :func:`mutual_information` and
    :func:`symmetrized_elbo` certify what its symmetrization gains, :func:`predict` and
    :func:`to_arviz` read it, ``AutoSymmetrized(guide)`` trains it on. Usage:

    >>> import torch
    >>> from torch import nn
    >>> import pyro_perm as pp
    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x, y = torch.randn(20, 1), torch.randn(20, 1)
    >>> found = {name: (p, 0.1 * torch.ones_like(p)) for name, p in network.named_parameters()}
    >>> noise = pp.likelihoods.gaussian(0.5)
    >>> model, guide = pp.gaussian_posterior(network, found, likelihood=noise)
    >>> information = pp.mutual_information(guide, x, y, num_samples=50, progress=False)
    >>> information.lower <= information.log_order  # log 4!
    True

    :param network: the network. Parameters without a Gaussian are left as they are.
    :param gaussian: name of a parameter -> its means and standard deviations, both of the
        parameter's shape; or a :class:`DenseGaussian` or :class:`LowRankGaussian` over several
        parameters jointly. ``pyro_perm.readers`` reads them off other libraries' posteriors.
    :param prior: of the parameters with a Gaussian; ``likelihood`` and ``dataset_size`` likewise,
        as in :func:`bayesian`.
    :raises ValueError: if the Gaussian does not fit the network, or a parameter of it has no prior.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    _require_fit(gaussian, shapes)
    priors.require_matches(prior, list(shapes))
    inner = _of_names(_means_of(gaussian), prior)
    model = bayesian(network, prior=inner, likelihood=likelihood, dataset_size=dataset_size)
    return GaussianPosterior(model, _guide_of(gaussian, model))


def _guide_of(gaussian: Gaussian, model: BayesianNetwork) -> AutoGuide:
    if isinstance(gaussian, DenseGaussian):
        return DenseGuide(model, gaussian)
    if isinstance(gaussian, LowRankGaussian):
        return LowRankGuide(model, gaussian)
    return FactorizedGuide(model, gaussian)


class FactorizedGuide(AutoNormal):
    """An ``AutoNormal`` that starts as a given Gaussian.

    :param model: the model.
    :param gaussian: site -> means and standard deviations.
    """

    def __init__(
        self, model: BayesianNetwork, gaussian: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        means = _means_of(gaussian)
        super().__init__(model, init_loc_fn=_start_at(means))
        self._start_scales = {name: scale.detach() for name, (_, scale) in gaussian.items()}
        name_apart(self, [*means.values(), *self._start_scales.values()])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for name, scale in self._start_scales.items():
            like = attrgetter(name)(self.scales)
            start = scale.to(like, copy=True)
            deep_setattr(self.scales, name, PyroParam(start, self.scale_constraint, scale.dim()))


class DenseGuide(AutoMultivariateNormal):
    """An ``AutoMultivariateNormal`` that starts as a given Gaussian.

    :param model: the model.
    :param gaussian: over all of its sites.
    """

    def __init__(self, model: BayesianNetwork, gaussian: DenseGaussian) -> None:
        super().__init__(model, init_loc_fn=_start_at(gaussian.means))
        self._start = gaussian
        name_apart(self, [*gaussian.means.values(), gaussian.scale_tril])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        order = _order_of_sites(self, self._start.means)
        factor = self._start.scale_tril.detach()
        if not torch.equal(order, torch.arange(len(order), device="cpu")):
            covariance = (factor @ factor.mT)[order][:, order]
            factor = torch.linalg.cholesky(covariance)
        factor = factor.to(self.loc)
        diagonal = factor.diagonal()
        self.scale = PyroParam(diagonal.clone(), self.scale_constraint)
        self.scale_tril = PyroParam(factor / diagonal[:, None], self.scale_tril_constraint)


class LowRankGuide(AutoLowRankMultivariateNormal):
    """An ``AutoLowRankMultivariateNormal`` that starts as a given Gaussian.

    :param model: the model.
    :param gaussian: over all of its sites.
    """

    def __init__(self, model: BayesianNetwork, gaussian: LowRankGaussian) -> None:
        rank = gaussian.cov_factor.shape[1]
        super().__init__(model, init_loc_fn=_start_at(gaussian.means), rank=rank)
        self._start = gaussian
        name_apart(self, [*gaussian.means.values(), gaussian.cov_factor, gaussian.cov_diag])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        order = _order_of_sites(self, self._start.means)
        scale = self._start.cov_diag.detach()[order].sqrt().to(self.loc)
        factor = self._start.cov_factor.detach()[order].to(self.loc)
        self.scale = PyroParam(scale, self.scale_constraint)
        self.cov_factor = nn.Parameter(factor / scale[:, None])


def _order_of_sites(guide: AutoGuide, means: Means) -> Tensor:
    """Where the entries of a guide's vector are in that of a Gaussian, shape ``(P,)``."""
    parts, start = {}, 0
    for name, mean in means.items():
        parts[name] = torch.arange(start, start + mean.numel(), device="cpu")
        start += mean.numel()
    prototype = guide.prototype_trace
    assert prototype is not None
    return torch.cat([parts[name] for name, _ in prototype.iter_stochastic_nodes()])


def _start_at(means: Means) -> Callable[[Any], Tensor]:
    """Initial values: the means.

    :raises ValueError: when called for a site without a mean.
    """

    def start(site: Any) -> Tensor:
        name = site["name"]
        if name not in means:
            raise ValueError(
                f"the Gaussian has no entry for the model's latent site '{name}': add its mean and "
                "standard deviation, or use a likelihood without latent sites"
            )
        return means[name].detach().clone()

    return start


def _means_of(gaussian: Gaussian) -> Means:
    if isinstance(gaussian, Mapping):
        return {name: mean for name, (mean, _) in gaussian.items()}
    return gaussian.means


def _of_names(names: Collection[str], prior: PriorLike) -> Prior:
    """The prior, for some parameters only.

    :raises ValueError: when called for one of them that has none.
    """
    inner = priors.as_prior(prior)

    def of_named(name: str, parameter: Tensor) -> Distribution | None:
        if name not in names:
            return None
        found = inner(name, parameter)
        if found is None:
            raise ValueError(
                f"parameter '{name}' has a Gaussian posterior, but no prior: give it one, or leave "
                "it out of the Gaussian"
            )
        return found

    return of_named


def _require_fit(gaussian: Gaussian, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a Gaussian that does not fit the network.

    :raises ValueError: naming the parameter.
    """
    means = _means_of(gaussian)
    if not means:
        raise ValueError("the Gaussian is over no parameter at all")
    for name, mean in means.items():
        if name not in shapes:
            raise ValueError(
                f"the Gaussian is over '{name}', which is no parameter of the network; its "
                f"parameters are {list(shapes)}"
            )
        _require(mean, shapes[name], f"the mean of '{name}'")
    size = sum(mean.numel() for mean in means.values())
    if isinstance(gaussian, DenseGaussian):
        _require(gaussian.scale_tril, (size, size), "scale_tril")
        _require_positive(gaussian.scale_tril.diagonal(), "the diagonal of scale_tril")
    elif isinstance(gaussian, LowRankGaussian):
        _require(gaussian.cov_factor, (size, *gaussian.cov_factor.shape[1:2]), "cov_factor")
        _require(gaussian.cov_diag, (size,), "cov_diag")
        _require_positive(gaussian.cov_diag, "cov_diag")
    else:
        for name, (_, scale) in gaussian.items():
            _require(scale, shapes[name], f"the scale of '{name}'")
            _require_positive(scale, f"the scale of '{name}'")


def _require(value: Tensor, shape: tuple[int, ...], what: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{what} is of shape {tuple(value.shape)}, but must be {tuple(shape)}")
    if not value.isfinite().all():
        raise ValueError(f"{what} has entries that are not finite")


def _require_positive(value: Tensor, what: str) -> None:
    if not (value > 0).all():
        raise ValueError(
            f"{what} must be positive, but is {float(value.min()):.2g} at least once: what a layer "
            "keeps before softplus is read by its library's reader in pyro_perm.readers"
        )
