"""Guides of Pyro to wrap, and what is common to their tests."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuide,
    AutoHierarchicalNormalMessenger,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.optim import Adam

import pyro_perm as pp

UNITS = 3
SERVED = [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
REFUSED = [
    AutoDelta,
    AutoLaplaceApproximation,
    AutoStructured,
    AutoGaussian,
    AutoNormalMessenger,
    AutoHierarchicalNormalMessenger,
]
LOSSES = [
    Trace_ELBO,
    TraceGraph_ELBO,
    partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    pp.TraceSymmetrized_ELBO,
]
JOINT = (AutoMultivariateNormal, AutoLowRankMultivariateNormal)

kinds = pytest.mark.parametrize("kind", SERVED)
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: getattr(loss, "__name__", "Enum"))


def units(name: str = "w") -> torch.Tensor:
    return pyro.sample(name, dist.Normal(0.0, 1.0).expand([UNITS]).to_event(1))


def wrapped(base: AutoGuide, **options) -> pp.AutoSymmetrized:
    estimator = pp.ImportanceSampled(2) if isinstance(base, JOINT) else None
    symmetry = pp.PermutationSymmetry({"units": {"w": 0}})
    return pp.AutoSymmetrized(base, symmetry, estimator=estimator, **options)


def steps(model, guide, loss, num, *args, lr=0.05, **kwargs):
    svi = SVI(model, guide, Adam({"lr": lr, "betas": (0.8, 0.99)}), loss)
    return [svi.step(*args, **kwargs) for _ in range(num)]
