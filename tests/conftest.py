"""Every test starts from a fixed seed, an empty param store and double precision."""

import hypothesis
import pyro
import pytest
import torch

from pyro_perm.estimators import estimator

# The same examples at every run; a first call may take long.
hypothesis.settings.register_profile("tests", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _clean_state():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.settings.set(module_local_params=False)
    yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def _own_estimators(monkeypatch):
    """An estimator that a test registers competes in its own certificates only."""
    monkeypatch.setattr(estimator, "_registered", [*estimator.registered_estimators()])
