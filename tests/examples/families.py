"""Every family of ``pyro.distributions``, as a function of real numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor
from torch.nn.functional import softplus

Build = Callable[[Tensor], dist.TorchDistribution]


@dataclass(frozen=True)
class Family:
    """A family of distributions.

    Attributes:
        num_parameters: how many numbers it takes.
        build: from real numbers, shape ``(*batch, num_parameters)``, to a distribution with that
            batch shape.
        data: a value, for families that cannot draw one.
        has_batches: whether the parameters may come in batches.
    """

    num_parameters: int
    build: Build
    data: Any = None
    has_batches: bool = True

    def draw(self) -> Tensor:
        """A value."""
        if self.data is not None:
            return torch.tensor(self.data)
        value: Tensor = self.build(torch.zeros(self.num_parameters)).sample()
        return value


def positive(x: Tensor) -> Tensor:
    return softplus(x) + 0.1


def factor(p: Tensor) -> Tensor:
    """A Cholesky factor, shape ``(*batch, 2, 2)``, from three numbers."""
    zero = torch.zeros_like(p[..., 0])
    rows = [positive(p[..., 0]), zero, p[..., 1], positive(p[..., 2])]
    return torch.stack(rows, -1).unflatten(-1, (2, 2))


def covariance(p: Tensor) -> Tensor:
    """A covariance matrix, shape ``(*batch, 2, 2)``, from four numbers."""
    root = p.unflatten(-1, (2, 2))
    return root @ root.mT + torch.eye(2)


def location_and_scale(name: str) -> Family:
    return Family(2, lambda p: getattr(dist, name)(p[..., 0], positive(p[..., 1])))


def one_positive(name: str) -> Family:
    return Family(1, lambda p: getattr(dist, name)(positive(p[..., 0])))


def two_positive(name: str) -> Family:
    return Family(2, lambda p: getattr(dist, name)(positive(p[..., 0]), positive(p[..., 1])))


def three(name: str) -> Family:
    return Family(
        3,
        lambda p: getattr(dist, name)(p[..., 0], positive(p[..., 1]), positive(p[..., 2])),
    )


def of_logits(name: str, *arguments: object, **options: object) -> Family:
    return Family(1, lambda p: getattr(dist, name)(*arguments, logits=p[..., 0], **options))


def of_three_logits(name: str, *arguments: object) -> Family:
    return Family(3, lambda p: getattr(dist, name)(*arguments, logits=p))


def normal(p: Tensor) -> dist.Normal:
    return dist.Normal(p[..., 0], positive(p[..., 1]))


def discrete_hmm(p: Tensor) -> dist.DiscreteHMM:
    transition = p[..., None, 2:6].unflatten(-1, (2, 2))
    observation = dist.Normal(p[..., None, 6:8], 1.0)
    return dist.DiscreteHMM(p[..., :2], transition, observation, duration=3)


def gaussian_hmm(p: Tensor) -> dist.GaussianHMM:
    eye = torch.eye(2)
    steps = dist.Normal(p[..., None, :2], 1.0).to_event(1)
    noise = dist.Normal(p[..., None, 2:4], positive(p[..., None, 4:6])).to_event(1)
    first = dist.Normal(p[..., :2], 1.0).to_event(1)
    return dist.GaussianHMM(first, eye, steps, eye, noise, duration=3)


def gaussian_mrf(p: Tensor) -> dist.GaussianMRF:
    first = dist.MultivariateNormal(p[..., :2], torch.eye(2))
    pair = dist.MultivariateNormal(p[..., None, 2:6], torch.eye(4))
    return dist.GaussianMRF(first, pair, dist.MultivariateNormal(p[..., None, :4], torch.eye(4)))


def gamma_gaussian_hmm(p: Tensor) -> dist.GammaGaussianHMM:
    eye = torch.eye(2)
    scale = dist.Gamma(positive(p[..., 4]), positive(p[..., 5]))
    first = dist.MultivariateNormal(p[..., :2], eye)
    steps = dist.MultivariateNormal(p[..., None, :2], eye)
    noise = dist.MultivariateNormal(p[..., None, 2:4], eye)
    return dist.GammaGaussianHMM(scale, first, eye, steps, eye, noise, duration=3)


def masked_mixture(p: Tensor) -> dist.MaskedMixture:
    mask = torch.ones(p.shape[:-1], dtype=torch.bool)
    return dist.MaskedMixture(mask, normal(p), dist.Normal(p[..., 0], 1.0).expand(p.shape[:-1]))


FAMILIES: dict[str, Family] = {
    **{
        name: location_and_scale(name)
        for name in (
            *("Normal", "Laplace", "Cauchy", "LogNormal", "Logistic", "Gumbel", "SoftLaplace"),
            *("VonMises", "NanMaskedNormal"),
        )
    },
    **{
        name: two_positive(name)
        for name in (
            *("Beta", "Gamma", "InverseGamma", "Kumaraswamy", "Weibull"),
            *("FisherSnedecor", "GammaPoisson", "BetaBinomial", "ExtendedBetaBinomial"),
        )
    },
    **{name: one_positive(name) for name in ("Exponential", "Chi2", "HalfCauchy", "HalfNormal")},
    **{
        name: three(name)
        for name in (*("AsymmetricLaplace", "SoftAsymmetricLaplace", "SkewLogistic"),)
    },
    **{name: of_logits(name) for name in ("Bernoulli", "ContinuousBernoulli", "Geometric")},
    **{
        name: of_three_logits(name)
        for name in ("Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough")
    },
    "AVFMultivariateNormal": Family(
        5,
        lambda p: dist.AVFMultivariateNormal(p[..., :2], factor(p[..., 2:5]), torch.zeros(2, 1, 2)),
        has_batches=False,
    ),
    "AffineBeta": Family(
        2, lambda p: dist.AffineBeta(positive(p[..., 0]), positive(p[..., 1]), -9.0, 18.0)
    ),
    "Binomial": of_logits("Binomial", 5),
    "Delta": Family(1, lambda p: dist.Delta(torch.zeros_like(p[..., 0]), log_density=p[..., 0])),
    "Dirichlet": Family(3, lambda p: dist.Dirichlet(positive(p))),
    "DirichletMultinomial": Family(3, lambda p: dist.DirichletMultinomial(positive(p), 5)),
    "DiscreteHMM": Family(8, discrete_hmm),
    "ExpandedDistribution": Family(
        2, lambda p: normal(p[..., None, :]).expand((*p.shape[:-1], 3)).to_event(1)
    ),
    "ExtendedBinomial": of_logits("ExtendedBinomial", 5),
    "FoldedDistribution": Family(2, lambda p: dist.FoldedDistribution(normal(p))),
    "GammaGaussianHMM": Family(6, gamma_gaussian_hmm, data=[[1.0, 2.0]] * 3),
    "GaussianHMM": Family(6, gaussian_hmm),
    "GaussianMRF": Family(6, gaussian_mrf, data=[[1.0, 2.0]]),
    "GeneralizedPareto": Family(
        3,
        lambda p: dist.GeneralizedPareto(p[..., 0], positive(p[..., 1]), positive(p[..., 2])),
        data=9.0,
    ),
    "Independent": Family(4, lambda p: normal(p.unflatten(-1, (2, 2))).to_event(1)),
    "IndependentHMM": Family(
        12, lambda p: dist.IndependentHMM(gaussian_hmm_1(p.unflatten(-1, (2, 6))))
    ),
    "LKJ": Family(1, lambda p: dist.LKJ(3, positive(p[..., 0]))),
    "LKJCholesky": Family(1, lambda p: dist.LKJCholesky(3, positive(p[..., 0]))),
    "LogNormalNegativeBinomial": Family(
        2,
        lambda p: dist.LogNormalNegativeBinomial(4.0, p[..., 0], positive(p[..., 1])),
        data=3.0,
    ),
    "LogisticNormal": Family(4, lambda p: dist.LogisticNormal(p[..., :2], positive(p[..., 2:]))),
    "LowRankMultivariateNormal": Family(
        6,
        lambda p: dist.LowRankMultivariateNormal(
            p[..., :2], p[..., 2:4, None], positive(p[..., 4:])
        ),
    ),
    "MaskedDistribution": Family(2, lambda p: normal(p).mask(True)),
    "MaskedMixture": Family(2, masked_mixture),
    "MixtureOfDiagNormals": Family(
        10,
        lambda p: dist.MixtureOfDiagNormals(
            p[..., :4].unflatten(-1, (2, 2)),
            positive(p[..., 4:8]).unflatten(-1, (2, 2)),
            p[..., 8:],
        ),
    ),
    "MixtureOfDiagNormalsSharedCovariance": Family(
        8,
        lambda p: dist.MixtureOfDiagNormalsSharedCovariance(
            p[..., :4].unflatten(-1, (2, 2)), positive(p[..., 4:6]), p[..., 6:]
        ),
    ),
    "MixtureSameFamily": Family(
        6,
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(logits=p[..., :2]), dist.Normal(p[..., 2:4], positive(p[..., 4:]))
        ),
    ),
    "Multinomial": of_three_logits("Multinomial", 5),
    "MultivariateNormal": Family(
        6, lambda p: dist.MultivariateNormal(p[..., :2], covariance(p[..., 2:]))
    ),
    "MultivariateNormal, scale_tril": Family(
        5, lambda p: dist.MultivariateNormal(p[..., :2], scale_tril=factor(p[..., 2:]))
    ),
    "MultivariateNormal, precision_matrix": Family(
        6, lambda p: dist.MultivariateNormal(p[..., :2], precision_matrix=covariance(p[..., 2:]))
    ),
    "MultivariateStudentT": Family(
        6,
        lambda p: dist.MultivariateStudentT(positive(p[..., 5]), p[..., :2], factor(p[..., 2:5])),
    ),
    "NanMaskedMultivariateNormal": Family(
        6, lambda p: dist.NanMaskedMultivariateNormal(p[..., :2], covariance(p[..., 2:]))
    ),
    "NegativeBinomial": of_logits("NegativeBinomial", 5),
    "OMTMultivariateNormal": Family(
        5,
        lambda p: dist.OMTMultivariateNormal(p[..., :2], factor(p[..., 2:])),
        has_batches=False,
    ),
    "OneOneMatching": Family(
        9, lambda p: dist.OneOneMatching(p.unflatten(-1, (3, 3))), has_batches=False
    ),
    "OneTwoMatching": Family(
        8, lambda p: dist.OneTwoMatching(p.unflatten(-1, (4, 2))), has_batches=False
    ),
    "OrderedLogistic": Family(
        3, lambda p: dist.OrderedLogistic(p[..., 0], positive(p[..., 1:]).cumsum(-1))
    ),
    "Pareto": Family(
        2,
        lambda p: dist.Pareto(positive(p[..., 0]), positive(p[..., 1])),
        data=9.0,
    ),
    "Poisson": one_positive("Poisson"),
    "ProjectedNormal": Family(3, dist.ProjectedNormal),
    "RelaxedBernoulli": of_logits("RelaxedBernoulli", torch.tensor(0.5)),
    "RelaxedBernoulliStraightThrough": of_logits(
        "RelaxedBernoulliStraightThrough", torch.tensor(0.5)
    ),
    "RelaxedOneHotCategorical": of_three_logits("RelaxedOneHotCategorical", torch.tensor(0.5)),
    "RelaxedOneHotCategoricalStraightThrough": of_three_logits(
        "RelaxedOneHotCategoricalStraightThrough", torch.tensor(0.5)
    ),
    "SineBivariateVonMises": Family(
        5,
        lambda p: dist.SineBivariateVonMises(
            *(p[..., 0], p[..., 1], positive(p[..., 2]), positive(p[..., 3])),
            weighted_correlation=p[..., 4].sigmoid(),
        ),
    ),
    "SineSkewed": Family(
        3,
        lambda p: dist.SineSkewed(
            dist.VonMises(p[..., :1], positive(p[..., 1:2])).to_event(1), p[..., 2:].tanh()
        ),
    ),
    "SpanningTree": Family(3, dist.SpanningTree, has_batches=False),
    "StableWithLogProb": Family(
        4,
        lambda p: dist.StableWithLogProb(
            1.0 + p[..., 0].sigmoid(), p[..., 1].tanh(), positive(p[..., 2]), p[..., 3]
        ),
    ),
    "StudentT": Family(
        3, lambda p: dist.StudentT(positive(p[..., 0]), p[..., 1], positive(p[..., 2]))
    ),
    "TransformedDistribution": Family(
        4,
        lambda p: dist.TransformedDistribution(
            normal(p),
            [
                transforms.AffineTransform(p[..., 2], positive(p[..., 3])),
                transforms.TanhTransform(),
            ],
        ),
    ),
    "Uniform": Family(1, lambda p: dist.Uniform(-9.0 - positive(p[..., 0]), 9.0)),
    "VonMises3D": Family(3, dist.VonMises3D, data=[0.6, 0.0, 0.8]),
    "Wishart": Family(4, lambda p: dist.Wishart(4.0, covariance(p))),
    "ZeroInflatedDistribution": Family(
        2,
        lambda p: dist.ZeroInflatedDistribution(
            dist.Poisson(positive(p[..., 0])), gate_logits=p[..., 1]
        ),
    ),
    "ZeroInflatedNegativeBinomial": Family(
        2, lambda p: dist.ZeroInflatedNegativeBinomial(5, logits=p[..., 0], gate_logits=p[..., 1])
    ),
    "ZeroInflatedPoisson": Family(
        2, lambda p: dist.ZeroInflatedPoisson(positive(p[..., 0]), gate_logits=p[..., 1])
    ),
}


def gaussian_hmm_1(p: Tensor) -> dist.GaussianHMM:
    """One-dimensional, twice."""
    steps = dist.Normal(p[..., None, :1], 1.0).to_event(1)
    noise = dist.Normal(p[..., None, 1:2], positive(p[..., None, 2:3])).to_event(1)
    first = dist.Normal(p[..., :1], 1.0).to_event(1)
    return dist.GaussianHMM(first, torch.eye(1), steps, torch.eye(1), noise, duration=3)


# Not families of their own, or without a density whose parameters come in batches.
LEFT_OUT = {
    "CoalescentTimes": "no batch of parameters",
    "CoalescentTimesWithRate": "no batch of parameters",
    "Empirical": "a set of samples",
    "ExponentialFamily": "abstract",
    "GaussianScaleMixture": "no batch of parameters",
    "GroupedNormalNormal": "no batch of parameters",
    "ImproperUniform": "no draws",
    "LKJCorrCholesky": "the old name of LKJCholesky",
    "LinearHMM": "no density",
    "Rejector": "a sampler",
    "Stable": "no density",
    "TorchDistribution": "abstract",
    "TruncatedPolyaGamma": "no parameters",
    "Unit": "pyro.factor",
}
