"""Draws of an ``AutoNormal`` by the noise that a loss without traces draws under a seed."""

import pyro
import torch
from pyro.poutine.messenger import Messenger


class GiveNoise(Messenger):
    """Draws the sites of an ``AutoNormal`` by noise of our choice."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        site = msg["name"].removesuffix("_unconstrained")
        if site != msg["name"]:
            q = msg["fn"].base_dist if msg["fn"].event_dim else msg["fn"]
            msg["value"], msg["done"] = q.loc + q.scale * self.noise[site], True


def noise_of(guide, seed, *batch):
    """The noise that a loss without traces draws under a seed, site by site."""
    shapes = {
        name: guide.locs.get_parameter(f"{name}_unconstrained").shape
        for name, _ in guide.prototype_trace.iter_stochastic_nodes()
    }
    sizes = [shape.numel() for shape in shapes.values()]
    pyro.set_rng_seed(seed)
    parts = torch.randn(*batch, sum(sizes)).split(sizes, -1)
    return {
        name: part.reshape(*batch, *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def assert_same(one, other, module):
    """The same losses, with the same gradients in the parameters of a module."""
    assert torch.allclose(one, other, rtol=1e-10)
    names, parameters = zip(*module.named_parameters(), strict=True)
    mine, theirs = (
        torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (one, other)
    )
    for name, grad, twin in zip(names, mine, theirs, strict=True):
        assert torch.allclose(grad, twin, rtol=1e-8, atol=1e-10), name
