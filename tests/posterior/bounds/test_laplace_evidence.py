"""Laplace's evidence with the gain of symmetry: exact where modes are apart, or one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_perm as pp

NOISE = pp.likelihoods.gaussian(0.5)
X = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)).double()
Y = X.square()


def evidence(means: torch.Tensor, scale: float) -> pp.LaplaceEvidence:
    """Of four units whose incoming weights are at some places."""
    network = nn.Sequential(nn.Linear(1, 4), nn.GELU(), nn.Linear(4, 1)).double()
    found = {
        name: (torch.zeros_like(p), torch.full_like(p, scale))
        for name, p in network.named_parameters()
    }
    found["0.weight"] = (means[:, None], found["0.weight"][1])
    _, guide = pp.gaussian_posterior(network, found, likelihood=NOISE)
    return pp.log_evidence_laplace(
        guide,
        X,
        Y,
        log_marginal_likelihood=torch.tensor(-30.0),
        num_samples=50,
        progress=False,
    )


def test_modes_apart_add_the_order_of_the_group_and_one_mode_adds_nothing() -> None:
    apart = evidence(torch.tensor([-3.0, -1.0, 1.0, 3.0]).double(), 0.01)
    assert apart.base == -30.0
    assert apart.lower == pytest.approx(-30 + math.lgamma(5), abs=1e-6)
    assert apart.upper == pytest.approx(-30 + math.lgamma(5), abs=1e-6)
    together = evidence(torch.zeros(4).double(), 0.1)
    assert together.lower == pytest.approx(-30.0, abs=1e-9)
    between = evidence(torch.tensor([-0.3, -0.1, 0.1, 0.3]).double(), 0.2)
    assert -30 < between.lower <= between.upper < -30 + math.lgamma(5)


def test_it_prints_as_a_table() -> None:
    printed = repr(evidence(torch.tensor([-3.0, -1.0, 1.0, 3.0]).double(), 0.01))
    assert "log p(D) by Laplace" in printed and "-26.82" in printed
