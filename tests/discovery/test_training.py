"""What is found can be trained: discovered groups through the guide and the default estimator."""

from __future__ import annotations

import examples.graphs_and_spectra
import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
import pyro
import pytest
import torch
from examples.bayesian import EXAMPLES
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import pyro_perm as pp

NAMES = (
    *("resnet_group_norm", "transformer", "lstm", "densenet", "lenet"),
    *("gaussian_mixture", "hidden_markov_marginal"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thirty_steps_without_a_spec(name: str) -> None:
    model, *args = next(example for example in EXAMPLES if example.name == name).build()
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
    guide = pp.AutoSymmetrized(base)
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    losses = torch.tensor([svi.step(*args) for _ in range(30)])
    assert losses.isfinite().all()
    assert losses[-10:].mean() < losses[:10].mean()
    # Refuses sides that cross by more than their error.
    information = pp.mutual_information(guide, *args, num_samples=4, progress=False)
    assert 0.5 * guide.symmetry.log_order < information.lower
    assert information.upper <= guide.symmetry.log_order + 1e-6
    pyro.clear_param_store()
