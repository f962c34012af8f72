"""Other processes give the numbers of this one, and lose none."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import TwoWeightNets
from processes import context
from pyro.infer.autoguide import AutoDelta, AutoNormal

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


def sent_and_written(network, halves):
    halves[0][1] += 1
    return network.weight, *halves


def pool(workers=2):
    return ProcessPoolExecutor(workers, mp_context=context())


def die_when_all_is_submitted():
    """A pool whose worker dies while it is given more, or starts another one, may wait for ever."""
    time.sleep(0.5)
    os._exit(3)


@pytest.fixture
def executor():
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
def test_the_memory_of_what_is_sent_stays_with_this_process(executor):
    """A pickler of multiprocessing moves it, in a thread of its own, while others read it here."""
    network = torch.nn.Linear(2, 1)
    value = torch.zeros(3)
    halves = value[:2], value[1:]
    found = pp.evaluate_each(sent_and_written, [(network, halves)] * 3, executor=executor)
    assert not any(tensor.is_shared() for tensor in (value, *network.parameters()))
    assert torch.equal(value, torch.zeros(3))
    for weight, first, second in found:  # Each had its own, with what they shared.
        assert torch.equal(weight, network.weight)
        assert torch.equal(first, torch.tensor([0.0, 1.0]))
        assert torch.equal(second, torch.tensor([1.0, 0.0]))
        assert not weight.is_shared()


@pytest.mark.slow
def test_a_lost_worker_loses_nothing(guides, expected):
    with pool(1) as executor:
        executor.submit(die_when_all_is_submitted)
        with pytest.warns(UserWarning, match="a worker of the executor was lost"):
            found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
    require_equal(found.integrands, expected)


@pytest.mark.slow
def test_dask_gives_the_same_numbers(guides, expected):
    distributed, dask = map(pytest.importorskip, ("distributed", "dask"))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    copies = {"distributed.worker.multiprocessing-method": context().get_start_method()}
    with (
        dask.config.set(copies),
        distributed.LocalCluster(host="127.0.0.1", **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
        by_draws = bounds(NETS.model, guides["moved"], executor=executor)
    require_equal(found.integrands, expected)
    assert by_draws == pytest.approx(bounds(NETS.model, guides["moved"]))


def bounds(model, guide, *args, **options):
    found = pp.symmetrized_elbo(model, guide, *args, **{**OPTIONS, "num_samples": 9, **options})
    return found.lower, found.upper, found.base


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_draws_in_other_processes_give_the_same_bounds(guides, workers):
    expected = bounds(NETS.model, guides["moved"])
    with pool(workers) as executor:
        assert bounds(NETS.model, guides["moved"], executor=executor) == pytest.approx(expected)
        estimator, symmetry = pp.SampledChainRule(4), NETS.symmetry()
        options = {"symmetry": symmetry, "estimator": estimator}
        found = bounds(NETS.model, guides["plain"], executor=executor, **options)
    assert found == pytest.approx(bounds(NETS.model, guides["plain"], **options))


def rows(x):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 3, shuffle=True)


def subsampled(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 8, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(w.tanh().sum(), 1.0), obs=x)


def noisy(x):
    subsampled(x + torch.randn(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize("model", [subsampled, noisy])
def test_batches_and_models_that_draw_give_the_same_bounds(model):
    pyro.settings.set(module_local_params=True)
    x = torch.randn(8)
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide(x)
    data = x if model is noisy else rows(x)
    options = {"symmetry": pp.PermutationSymmetry({"units": {"w": 0}})}
    expected = bounds(model, guide, data, **options)
    with pool(1) as executor:
        found = bounds(model, guide, data, executor=executor, **options)
        assert found == pytest.approx(expected)
        executor.submit(die_when_all_is_submitted)
        with pytest.warns(UserWarning, match="a worker of the executor was lost"):
            found = bounds(model, guide, data, executor=executor, **options)
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_each_case_is_evaluated_from_the_same_random_state(guides, executor):
    cases = [(NETS.model, guide) for guide in guides.values()]
    options = {**OPTIONS, "num_samples": 4, "site": "y0"}
    here = pp.evaluate_each(pp.predict, cases, **options)
    expected = [pp.predict(*case, **options) for case in cases]
    there = pp.evaluate_each(pp.predict, cases, executor=executor, **options)
    for one, *others in zip(expected, here, there, strict=True):
        for other in others:
            torch.testing.assert_close(one.draws, other.draws, rtol=1e-12, atol=0)


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
