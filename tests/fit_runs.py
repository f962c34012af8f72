"""A small run of `pp.fit`, and what it leaves behind."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp

X = torch.linspace(-1, 1, 24, dtype=torch.float64)
Y = torch.sin(2 * X)


def model(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    f = (torch.tanh(x[..., None] * w1) * w2).sum(-1)
    with pyro.plate("data", len(X), subsample=x):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def new_guide(kind=AutoNormal, symmetrize=False):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    base = kind(model, init_loc_fn=pp.init_to_fan_in)
    symmetry = pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}})
    return pp.AutoSymmetrized(base, symmetry) if symmetrize else base


def run(guide, data=(X, Y), **kwargs):
    pyro.set_rng_seed(1)
    return pp.fit(model, guide, data, progress=False, **kwargs)


def values(guide):
    return [parameter.detach().clone() for parameter in guide.parameters()]


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Interruption:
    """Presses Ctrl-C after a step."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step, self.error = step, error

    def __call__(self, history):
        if history.step == self.step:
            raise self.error
