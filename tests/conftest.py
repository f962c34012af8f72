"""Every test starts from a fixed seed, an empty param store and double precision."""

import hypothesis
import pyro
import pytest
import torch

from pyro_perm.estimators import estimator

# The same examples at every run; a first call may take long.
hypothesis.settings.register_profile("tests", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """The longest first: workers that share the rest then end together."""

    def place(item):
        if item.path.stem == "test_tutorials":
            return 0
        return 2 if item.get_closest_marker("slow") is None else 1

    items.sort(key=place)


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
