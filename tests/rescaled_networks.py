"""Networks of a few units that rescale, and integrals along their orbits by brute force."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp
from pyro_perm import Axis
from pyro_perm.trace_sites import log_ratio_nodes

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9], [0.1, 0.2], [-1.5, -0.3]]).double()
Y = torch.tensor([0.4, -0.2, 1.1, 0.0, 0.7]).double()


def normal(scale):
    return lambda *shape: dist.Normal(torch.zeros(shape).double(), scale)


def laplace(scale):
    return lambda *shape: dist.Laplace(torch.zeros(shape).double(), scale)


def student(scale):
    return lambda *shape: dist.StudentT(5.0, torch.zeros(shape).double(), scale)


class Network:
    """A layer of a few units between two matrices, whose priors are given.

    :param noise: of the observations; the larger, the less do the values of an ELBO vary.
    """

    def __init__(self, num_units, activation=torch.relu, prior=normal, noise=0.5):
        self.num_units, self.activation, self.prior = num_units, activation, prior
        self.noise = noise

    def __call__(self, x=X, y=Y):
        n = self.num_units
        w = pyro.sample("w", self.prior(0.9)(n, 2).to_event(2))
        b = pyro.sample("b", self.prior(1.2)(n).to_event(1))
        v = pyro.sample("v", self.prior(0.7)(1, n).to_event(2))
        f = self.activation(x @ w.mT + b.unsqueeze(-2)) @ v.mT
        f = f.squeeze(-1)
        f = f.reshape(*f.shape[:-2], f.shape[-1]) if f.dim() > 1 else f
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(f, self.noise), obs=y)

    def base(self, init_scale=0.4):
        return AutoNormal(self, init_loc_fn=pp.init_to_fan_in, init_scale=init_scale)

    def guide(self, **kwargs):
        return pp.AutoSymmetrized(self.base(), self.symmetry, **kwargs)

    @property
    def symmetry(self):
        incoming = Axis(0, scale=1, sign=self.activation is torch.abs)
        spec = {"w": incoming, "b": incoming, "v": Axis(1, scale=-1)}
        return pp.PermutationSymmetry({"units": spec})


def units(tensors):
    """Entries of every unit, shape ``(..., n, 4)``."""
    w, b, v = tensors["w"], tensors["b"], tensors["v"]
    return torch.cat([w, b.unsqueeze(-1), v.mT], -1)


DEGREES = torch.tensor([1.0, 1.0, 1.0, -1.0]).double()
T = torch.linspace(-14, 14, 6_001, dtype=torch.float64)


def along_orbit(log_density, entries):
    """``log int f(t . w) e^(a t) dt`` of one unit by the trapezoid rule."""
    rescaled = entries * torch.exp(DEGREES * T[:, None])
    heights = log_density(rescaled).sum(-1) + DEGREES.sum() * T
    return heights.logsumexp(0) + (T[1] - T[0]).log()


def brute_force(network, values, locs, scales):
    """``log q~(w) - log q(w)``, by all permutations, signs, and a dense grid of scales."""
    w, m, s = map(units, (values, locs, scales))
    n = network.num_units
    flips = [1.0, -1.0] if network.activation is torch.abs else [1.0]
    signs = [torch.tensor([flip, flip, flip, 1.0]) for flip in flips]
    pairs = torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [along_orbit(dist.Normal(m[i], s[i]).log_prob, w[j] * h) for h in signs]
                    ).logsumexp(0)
                    for j in range(n)
                ]
            )
            for i in range(n)
        ]
    )
    orders = [sum(pairs[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n))]

    def log_prior(entries):
        parts = zip((0.9, 1.2, 0.7), entries.split([2, 1, 1], -1), strict=True)
        return torch.cat([network.prior(scale)().log_prob(part) for scale, part in parts], -1)

    log_p_orbit = sum(along_orbit(log_prior, w[j]) for j in range(n))
    log_p_orbit = log_p_orbit + math.lgamma(n + 1) + n * math.log(len(flips))
    log_q = dist.Normal(m, s).log_prob(w).sum()
    return log_prior(w).sum() + torch.stack(orders).logsumexp(0) - log_p_orbit - log_q


def density_of(guide):
    with poutine.trace() as tracer:
        guide()
    (node,) = log_ratio_nodes(tracer.trace.nodes).values()
    return node["fn"].density
