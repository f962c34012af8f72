"""Other processes give the numbers of this one, and lose none."""

import faulthandler
import functools
import multiprocessing
import os
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import TwoWeightNets
from processes import context
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal

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


def settings_of_numbers():
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return pyro.settings.get(), torch.get_default_dtype(), torch.get_num_threads(), autocast


def size_of_memory(x, *others):
    return x.untyped_storage().nbytes()


def median_of(guide, x=None):
    return guide.median()


NETWORK = torch.nn.Linear(1, 1)


def with_a_global_network(x):
    return NETWORK(x)


def product(x):
    return (x @ x).sum()


def product_in_a_copy(x):
    """Computed by threads, and then in a copy of this process, which has none of them."""
    faulthandler.dump_traceback_later(60, exit=True)
    torch.set_num_threads(2)
    here = product(x)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as copies:
        (there,) = pp.evaluate_each(product, [(x,)], executor=copies)
    faulthandler.cancel_dump_traceback_later()
    return here, there


class Failing(Executor):
    """The first call fails, the others never start."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *args):
        self.futures.append(Future())
        self.futures[0].set_exception(KeyError("first")) if len(self.futures) == 1 else None
        return self.futures[-1]


def pool(workers=2):
    return ProcessPoolExecutor(workers, mp_context=context())


def die_when_there_is(file):
    while not file.exists():
        time.sleep(0.01)
    os._exit(3)


class Deadly(Executor):
    """A pool whose worker dies when it has been given some calls.

    One that dies while the pool is given more, or starts another one, may let it wait for ever.
    """

    def __init__(self, pool, calls, folder):
        self.pool, self.left, self.file = pool, calls, folder / "all is submitted"
        pool.submit(die_when_there_is, self.file)

    def submit(self, function, /, *args):
        future = self.pool.submit(function, *args)
        self.left -= 1
        if self.left == 0:
            self.file.touch()
        return future


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
def test_what_numbers_depend_on_goes_along(executor):
    here = torch.get_num_threads()
    torch.set_num_threads(here + 1)
    try:
        settings = pyro.settings.context(cholesky_relative_jitter=8.0, validate_poutine=False)
        with settings, torch.autocast("cpu", torch.bfloat16):
            expected = settings_of_numbers()
            found = pp.evaluate_each(settings_of_numbers, [()], executor=executor)
    finally:
        torch.set_num_threads(here)
    assert found == [expected]
    assert pp.evaluate_each(settings_of_numbers, [()], executor=executor) != found


@pytest.mark.slow
def test_models_of_networks_and_their_laplace_approximations_go_along(executor):
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    likelihood = pp.likelihoods.gaussian(0.5)
    model = pp.bayesian(net, prior=dist.Normal(0.0, 0.2), likelihood=likelihood)
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    mode = AutoLaplaceApproximation(model, init_loc_fn=pp.init_to_fan_in)
    pp.fit(model, mode, (x, x), steps=100, learning_rate=0.05, progress=False)
    guide = pp.laplace_approximation(mode, x, x)
    guide(x, x)
    cases, options = [(model, guide, x, x)] * 2, {"num_samples": 4, "progress": False}
    expected = pp.evaluate_each(pp.predict, cases, **options)
    found = pp.evaluate_each(pp.predict, cases, executor=executor, **options)
    for here, there in zip(expected, found, strict=True):
        torch.testing.assert_close(there.mean, here.mean)


@pytest.mark.slow
def test_a_view_travels_without_the_rest_of_its_memory(executor):
    parts = torch.zeros(6, 10, requires_grad=True).unbind()
    size = parts[0].element_size()
    cases = [(parts[0],), (parts[1], parts[2]), (torch.zeros(3),)]
    found = pp.evaluate_each(size_of_memory, cases, executor=executor)
    assert found == [10 * size, 60 * size, 3 * size]  # Two views of one memory share it there too.


@pytest.mark.slow
def test_copies_of_this_process_wait_for_nothing_of_it(executor):
    ((here, there),) = pp.evaluate_each(
        product_in_a_copy, [(torch.ones(300, 300),)], executor=executor
    )
    assert here == there


def test_nobody_waits_for_the_rest_after_an_error():
    executor = Failing()
    with pytest.raises(KeyError, match="first"):
        pp.evaluate_each(product, [(torch.ones(1, 1),)] * 3, executor=executor)
    assert [future.cancelled() for future in executor.futures] == [False, True, True]


@pytest.mark.slow
def test_a_lost_worker_loses_nothing(guides, expected, tmp_path):
    with pool(1) as workers:
        executor = Deadly(workers, len(guides), tmp_path)
        with pytest.warns(UserWarning, match="a worker of the executor was lost"):
            found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
    require_equal(found.integrands, expected)


@pytest.mark.slow
def test_dask_gives_the_same_numbers(guides, expected, monkeypatch):
    distributed, dask = map(pytest.importorskip, ("distributed", "dask"))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    copies = {"distributed.worker.multiprocessing-method": context().get_start_method()}
    with (
        dask.config.set(copies),
        distributed.LocalCluster(host="127.0.0.1", **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        found = pp.compare(NETS.model, guides, executor=executor, **OPTIONS)
        by_draws = bounds(NETS.model, guides["moved"], executor=executor)
        # As in a notebook, whose functions no other process can import.
        notebook = {"__name__": "__main__"}
        exec("def twice(x): return 2 * x", notebook)
        monkeypatch.setattr(sys.modules["__main__"], "twice", notebook["twice"], raising=False)
        assert pp.evaluate_each(notebook["twice"], [(3,)], executor=executor) == [6]
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
def test_batches_and_models_that_draw_give_the_same_bounds(model, tmp_path):
    pyro.settings.set(module_local_params=True)
    x = torch.randn(8)
    guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide(x)
    data = x if model is noisy else rows(x)
    options = {"symmetry": pp.PermutationSymmetry({"units": {"w": 0}})}
    expected = bounds(model, guide, data, **options)
    with pool(1) as workers:
        found = bounds(model, guide, data, executor=workers, **options)
        assert found == pytest.approx(expected)
        executor = Deadly(workers, 8, tmp_path)  # As many shares of draws.
        with pytest.warns(UserWarning, match="a worker of the executor was lost"):
            found = bounds(model, guide, data, executor=executor, **options)
    assert found == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the observations at site 'y0' have one log-likelihood")
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


@pytest.mark.parametrize("hidden_in", ["a method", "a partial application", "a module"])
def test_guides_inside_of_others_are_refused_and_keep_their_models(guides, hidden_in):
    """Their pickling would take the model away from the guide here."""
    guide = guides["plain"]
    function, case = {
        "a method": (guide.median, ()),
        "a partial application": (functools.partial(median_of, guide), ()),
        "a module": (median_of, (torch.nn.ModuleList([guide]),)),
    }[hidden_in]
    with pool() as executor, pytest.raises(TypeError, match="AutoNormal is part of a function or"):
        pp.evaluate_each(function, [case], executor=executor)
    assert guide.model is not None


@pytest.mark.slow
def test_a_network_that_is_another_one_there_is_refused(executor):
    """A process imports this file anew, and makes a network of its own."""
    x = torch.ones(1, dtype=NETWORK.weight.dtype)
    with pytest.raises(ValueError, match="parameter 'weight' has another value in the process of"):
        pp.evaluate_each(with_a_global_network, [(x,)], executor=executor)
    (found,) = pp.evaluate_each(torch.nn.Module.__call__, [(NETWORK, x)], executor=executor)
    assert torch.equal(found, NETWORK(x))


def test_handlers_around_are_refused(guides):
    with (
        pool() as executor,
        pyro.poutine.scale(scale=2.0),
        pytest.raises(ValueError, match="a handler of Pyro is around this call"),
    ):
        pp.evaluate_each(median_of, [(guides["plain"],)], executor=executor)


@pytest.mark.slow
def test_guides_that_cannot_be_sent_are_refused(guides, executor):
    point = AutoDelta(NETS.model)
    point()
    with pytest.raises(TypeError, match="this is a AutoDelta"):
        pp.compare(NETS.model, {**guides, "point": point}, executor=executor, **OPTIONS)
