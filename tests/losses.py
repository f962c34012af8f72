"""A guide that has started, the value of a loss at it with its gradient, and the guide's trace."""

import pyro
import torch
from pyro import poutine

import pyro_perm as pp


class Recorder:
    """A guide in a closure, which keeps the trace of its last call."""

    def __init__(self, guide):
        self.guide = guide

    def __call__(self, *args):
        with poutine.trace() as tracer:
            result = self.guide(*args)
        self.trace = tracer.trace
        return result


def started(problem, estimator=None, **kwargs):
    """A guide with random parameters that has run once."""
    guide = problem.guide(estimator or pp.Exact(), **kwargs)
    guide(*problem.args)
    return guide


def loss_and_grads(loss, model, guide, args):
    """The loss under a fixed seed, and its gradient in the parameters of the guide."""
    pyro.set_rng_seed(1)
    for parameter in guide.parameters():
        parameter.grad = None
    value = loss.loss_and_grads(model, guide, *args)
    return torch.as_tensor(value).item(), [p.grad.clone() for p in guide.parameters()]
