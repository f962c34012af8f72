"""Every estimator keeps the contract."""

import pytest
from contracts.estimator import EXAMPLES, EstimatorContract

import pyro_perm as pp
from pyro_perm.estimators import registered_estimators


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
class TestEstimator(EstimatorContract):
    pass


def test_every_estimator_has_an_example():
    assert {type(example.estimator) for example in EXAMPLES} == set(registered_estimators())


def test_every_estimator_is_exported():
    assert all(getattr(pp, kind.__name__) is kind for kind in registered_estimators())
