"""What Pyro expects of autoguides of its modules and plates holds through the wrapper."""

from __future__ import annotations

import io
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from autoguides import JOINT, UNITS, kinds, losses, steps, units, wrapped
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam
from torch import nn

import pyro_perm as pp

pytestmark = [
    pytest.mark.filterwarnings("ignore:group 'units' leaves the log joint as it is"),
    # Where all units start is what some of these tests are about.
    pytest.mark.filterwarnings("ignore:all units of group 'units' have the same"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


class BayesianLinear(nn.Linear, PyroModule):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        weight = dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2)
        self.weight = PyroSample(weight)
        self.bias = PyroSample(dist.Normal(0.0, 10.0).expand([outputs]).to_event(1))


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = BayesianLinear(2, UNITS), BayesianLinear(UNITS, 1)

    def forward(self, x, y=None):
        mean = self.out(self.hidden(x).tanh()).squeeze(-1)
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("plate", len(x)):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@kinds
@losses
def test_networks_of_pyro_modules_train_and_predict(kind, loss):
    x, y, model = torch.randn(6, 2), torch.randn(6), Regression()
    estimator = pp.ImportanceSampled(2) if kind in JOINT else None
    guide = pp.AutoSymmetrized(kind(model, init_loc_fn=pp.init_to_fan_in), estimator=estimator)
    assert all(map(math.isfinite, steps(model, guide, loss(), 3, x, y)))
    draws = Predictive(model, guide=guide, num_samples=5)(x)
    latent = {name for name in draws if name != "obs"}
    assert latent == {"hidden.weight", "hidden.bias", "out.weight", "out.bias", "sigma"}
    assert draws["obs"].shape == (5, 6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_predictions():
    x, y, model = torch.randn(6, 2), torch.randn(6), Regression()
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    guide(x, y)
    predictive = Predictive(model, guide=guide, num_samples=4)
    compiled = torch.jit.trace_module(predictive, {"call": (x,)}, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    buffer.seek(0)
    assert len(torch.jit.load(buffer).call(x)) == len(predictive(x))


@pytest.mark.parametrize("loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO])
def test_plates_of_the_model_may_subsample(loss):
    def model(x, batch_size=None):
        w = units()
        with pyro.plate("batch", len(x), subsample_size=batch_size):
            batch = pyro.subsample(x, event_dim=0)
            sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(w.tanh().sum(), sigma), obs=batch)

    guide, x = wrapped(AutoNormal(model, init_loc_fn=pp.init_to_fan_in)), torch.randn(50)
    assert all(map(math.isfinite, steps(model, guide, loss(), 5, x, batch_size=20)))
    assert guide.median()["sigma"].shape == (50,)


@pytest.mark.parametrize("as_list", [True, False])
def test_plates_may_come_from_outside(as_list):
    def model(batch, subsample, full_size):
        drift, w = pyro.sample("drift", dist.LogNormal(-1, 0.5)), units()
        with pyro.plate("data", full_size, subsample=subsample):
            z = 0.0
            for t, observed in enumerate(batch):
                z = pyro.sample(f"state_{t}", dist.Normal(z, drift))
                logits = z + w.tanh().sum()
                pyro.sample(f"obs_{t}", dist.Bernoulli(logits=logits), obs=observed)

    def create_plates(batch, subsample, full_size):
        return pyro.plate("data", full_size, subsample=subsample)

    if as_list:
        base = AutoGuideList(model, create_plates=create_plates)
        base.append(AutoDelta(poutine.block(model, expose=["drift"])))
        base.append(AutoNormal(poutine.block(model, hide=["drift"]), init_loc_fn=pp.init_to_fan_in))
    else:
        base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, create_plates=create_plates)
    guide, data = wrapped(base), torch.randint(2, (4, 30)).double()
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    for begin in range(0, 30, 12):  # 12, 12 and 6
        subsample = torch.arange(begin, min(begin + 12, 30))
        assert math.isfinite(svi.step(data[:, subsample], subsample, full_size=30))
    assert guide.median()["state_0"].shape == (30,)


@kinds
def test_models_without_sites_are_errors(kind):
    with warnings.catch_warnings(), pytest.raises((RuntimeError, ValueError)):
        warnings.simplefilter("ignore")
        pp.AutoSymmetrized(kind(lambda: None))()
