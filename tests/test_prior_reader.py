"""Priors of rescaled sites are read in an order that is the same in every process."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_perm as pp
from pyro_perm.prior_reader import PriorReader

NAMES = [f"w{i}" for i in range(12)]


def model():
    for name in reversed(NAMES):
        pyro.sample(name, dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_priors_are_in_the_order_of_the_symmetry():
    """Their densities are added up, and in an order of hashes their last digits were chance."""
    axes = {name: pp.Axis(0, scale=1 if i % 2 else -1) for i, name in enumerate(NAMES)}
    group = pp.PermutationSymmetry({"units": axes}).bind(poutine.trace(model).get_trace())
    reader = PriorReader(model, group)
    priors = reader({}, (), {})
    assert priors is not None and list(priors.sites) == list(reader.sites) == NAMES
