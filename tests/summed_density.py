"""Guides whose density is the sum over all permutations, written out as a distribution.

What a loss of Pyro makes of such a guide, by value and by gradient, is what it should make of a
symmetrized one: the density is a function of the value at hand, whatever the loss does with it.
"""

import itertools
import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution


class SummedDensity(TorchDistribution):
    """``1/|G| sum_g q(g w)`` of a vector ``w``, drawn from ``q``.

    :param parts: independent distributions of consecutive parts of the vector, each with as many
        entries as there are numbers in its event.
    :param orders: for every permutation, where each entry of the vector comes from.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(self, parts, orders, batch_shape=()):
        self.parts, self.orders = parts, orders
        size = sum(part.event_shape.numel() for part in parts)
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return SummedDensity(self.parts, self.orders, batch_shape)

    def rsample(self, sample_shape=()):
        draws = [part.expand(self.batch_shape).rsample(sample_shape) for part in self.parts]
        kept = len(sample_shape) + len(self.batch_shape)
        return torch.cat([draw.flatten(kept) for draw in draws], -1)

    def log_prob(self, value):
        terms = [self._log_q(value[..., order]) for order in self.orders]
        return torch.stack(terms).logsumexp(0) - math.log(len(self.orders))

    def _log_q(self, value):
        sizes = [part.event_shape.numel() for part in self.parts]
        each = zip(self.parts, value.split(sizes, -1), strict=True)
        return sum(part.log_prob(v.unflatten(-1, part.event_shape)) for part, v in each)


def orders_of(shapes, axes):
    """Where the entries of consecutive sites come from, for every permutation of their units.

    :param shapes: site -> shape.
    :param axes: site -> the axis along which its units lie.
    """
    units = next(shapes[site][axis] for site, axis in axes.items())
    orders = []
    for permutation in itertools.permutations(range(units)):
        start, order = 0, []
        for site, shape in shapes.items():
            entries = torch.arange(math.prod(shape)).reshape(shape)
            order.append(start + entries.index_select(axes[site], torch.tensor(permutation)))
            start += entries.numel()
        orders.append(torch.cat([entries.flatten() for entries in order]))
    return orders


def summed_guide(parts, shapes, axes):
    """A guide of some sites.

    :param parts: function that returns the distributions, for parameters of the moment.
    :param shapes: site -> shape, in the order of the parts.
    :param axes: site -> the axis along which its units lie.
    """
    orders = orders_of(shapes, axes)

    def guide(*args, **kwargs):
        summed = SummedDensity(parts(), orders)
        vector = pyro.sample("_vector", summed, infer={"is_auxiliary": True})
        start = 0
        for site, shape in shapes.items():
            end = start + math.prod(shape)
            value = vector[..., start:end].unflatten(-1, shape)
            pyro.sample(site, dist.Delta(value, event_dim=len(shape)))
            start = end

    return guide
