"""Other processes give the numbers of this one, and lose none."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pyro
import pytest
import torch
from problems import TwoWeightNets
from pyro.infer.autoguide import AutoDelta

import pyro_perm as pp

NETS = TwoWeightNets(alphas=(0.2, 0.1))
OPTIONS = {"num_samples": 5, "progress": False}


@pytest.fixture
def guides():
    pyro.settings.set(module_local_params=True)
    plain = NETS.base()
    plain()
    moved = NETS.base()
    moved()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.1
    symmetrized = pp.AutoSymmetrized(moved, NETS.symmetry())
    symmetrized()
    return {"plain": plain, "moved": symmetrized}


@pytest.fixture
def expected(guides):
    return pp.compare(NETS.model, guides, **OPTIONS).integrands


def pool():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def executor():
    """Processes take seconds to start: these serve several tests."""
    with pool() as executor:
        yield executor


def require_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=0)


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_leave_the_guides_alone(guides, expected, executor):
    state = torch.get_rng_state()
    found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
    require_equal(found.integrands, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert guides["plain"].model is not None  # Pickling would have taken it away.


@pytest.mark.slow
def test_a_lost_worker_loses_nothing(guides, expected):
    with pool() as executor:
        executor.submit(os._exit, 3)
        with pytest.warns(UserWarning, match="a worker of the executor was lost"):
            found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
    require_equal(found.integrands, expected)


@pytest.mark.slow
def test_dask_gives_the_same_numbers(guides, expected):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(host="127.0.0.1", **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = pp.compare(NETS.model, guides, executor=client.get_executor(), **OPTIONS)
    require_equal(found.integrands, expected)


@pytest.mark.slow
def test_errors_of_the_evaluation_are_passed_on(guides, executor):
    with pytest.raises(ValueError, match="num_samples must be an int of at"):
        pp.compare(NETS.model, guides, executor=executor, num_samples=2, progress=False)


def test_threads_are_refused(guides, expected):
    with ThreadPoolExecutor() as executor, pytest.raises(ValueError, match="give one with proces"):
        pp.compare(NETS.model, guides, executor=executor, **OPTIONS)


@pytest.mark.slow
def test_guides_that_cannot_be_sent_are_refused(guides, executor):
    point = AutoDelta(NETS.model)
    point()
    with pytest.raises(TypeError, match="this is a AutoDelta"):
        pp.compare(NETS.model, {**guides, "point": point}, executor=executor, **OPTIONS)
