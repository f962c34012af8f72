"""The training loop is the loop one would write, ends as it is told, and goes on where it was."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from fit_runs import Interruption, X, Y, assert_equal, model, new_guide, run, values
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp


def test_it_takes_the_steps_of_a_loop_written_out():
    guide = new_guide()
    history = run(guide, steps=7, learning_rate=0.05)
    fitted = values(guide)
    guide = new_guide()
    loss = pp.FunctionalMeanField_ELBO()
    pyro.set_rng_seed(1)
    loss.loss(model, guide, X, Y)
    module = loss(model, guide)
    module(X, Y)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05, fused=True)
    losses = []
    for _ in range(7):
        optimizer.zero_grad()
        value = module(X, Y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert history.losses == losses
    assert_equal(fitted, values(guide))


def test_it_takes_the_steps_of_svi_with_an_optimizer_of_pyro():
    guide = new_guide(AutoDiagonalNormal)
    history = run(guide, steps=5, elbo=Trace_ELBO(), optimizer=pyro.optim.Adam({"lr": 0.05}))
    guide = new_guide(AutoDiagonalNormal)
    pyro.set_rng_seed(1)
    Trace_ELBO().loss(model, guide, X, Y)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert history.losses == [svi.step(X, Y) for _ in range(5)]
    assert history.learning_rates == []


def test_a_guide_that_needs_traces_gets_a_loss_with_traces():
    assert run(new_guide(AutoDiagonalNormal), steps=3).step == 3
    assert run(new_guide(AutoDiagonalNormal, symmetrize=True), steps=3).step == 3


def test_parameters_of_functions_are_trained_too():
    def guide(x, y=None):
        for site in ("w1", "w2"):
            loc = pyro.param(f"{site}_loc", torch.randn(3))
            pyro.sample(site, dist.Normal(loc, 0.1).to_event(1))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    run(guide, steps=1)
    before = pyro.param("w1_loc").detach().clone()
    run(guide, steps=5)
    assert (pyro.param("w1_loc") != before).all()


@pytest.mark.parametrize("optimizer", [partial(torch.optim.Adam, lr=0.1), pyro.optim.Adam])
@pytest.mark.parametrize(
    "kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLaplaceApproximation]
)
def test_parameters_of_modules_and_of_the_store_are_trained_alike(kind, optimizer):
    fitted = []
    for local in (False, True):
        pyro.settings.set(module_local_params=local)
        guide = new_guide(kind)
        made = optimizer({"lr": 0.1}) if optimizer is pyro.optim.Adam else optimizer
        losses = run(guide, steps=3, elbo=Trace_ELBO(), optimizer=made).losses
        fitted.append([torch.tensor(losses), *values(guide)])
    assert_equal(*fitted)


@pytest.mark.parametrize("optimizer", [None, pyro.optim.Adam])
def test_functions_train_beside_modules_with_parameters_of_their_own(optimizer):
    """Values of the store lose what SVI reads them by, while a module calls."""

    class Module(PyroModule):
        forward = staticmethod(model)

    def guide(x, y=None):
        for site in ("w1", "w2"):
            loc = pyro.param(f"{site}_loc", lambda: torch.randn(3))
            scale = pyro.param(f"{site}_scale", torch.ones(3), constraint=constraints.positive)
            pyro.sample(site, dist.Normal(loc, scale).to_event(1))

    pyro.settings.set(module_local_params=True)
    made = optimizer and optimizer({"lr": 0.1})
    losses = pp.fit(Module(), guide, (X, Y), steps=60, optimizer=made, progress=False).losses
    assert sum(losses[-20:]) < sum(losses[:20])
    start = {"scale": torch.ones(3), "loc": torch.zeros(3)}
    for name, value in pyro.get_param_store().items():
        assert (value != start[name[3:]]).all()


@pytest.mark.parametrize("arguments", [{"lr": 0.1}, lambda name: {"lr": 0.1}])
def test_optimizers_of_pyro_that_need_names_of_parameters_are_refused(arguments, tmp_path):
    pyro.settings.set(module_local_params=True)
    path = None if callable(arguments) else tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"where parameter '.*' is not under module_local_params"):
        run(new_guide(), steps=2, optimizer=pyro.optim.Adam(arguments), checkpoint=path)


def test_training_raises_the_bound():
    guide = new_guide(symmetrize=True)
    history = run(guide, steps=200, learning_rate=0.05)
    smoothed = history.smoothed_elbo(20)
    assert smoothed[-1] > smoothed[20] + 20


def seen_batches(data, **kwargs):
    seen = []

    def watched(x, y=None):
        seen.append(x)
        model(x, y)

    pyro.clear_param_store()
    guide = AutoNormal(watched)
    guide(X, Y)
    pyro.set_rng_seed(1)
    run_ = partial(pp.fit, watched, guide, progress=False, elbo=pp.FunctionalMeanField_ELBO())
    history = run_(data, **kwargs)
    return history, seen[-history.step :]


def test_an_epoch_of_minibatches_sees_all_data_once_in_a_new_order():
    history, seen = seen_batches((X, Y), epochs=2, batch_size=10)
    assert [len(x) for x in seen] == [10, 10, 4] * 2
    assert history.epoch_ends == [3, 6]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, X) and torch.equal(second.sort().values, X)
    assert not torch.equal(first, second)


def test_a_loader_gives_the_batches():
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    history, seen = seen_batches(loader, steps=4)
    assert [*map(len, seen)] == [8] * 4
    assert torch.equal(torch.cat(seen[:3]), X)
    assert history.epoch_ends == [3]
    history, seen = seen_batches([{"x": X[:6], "y": Y[:6]}], epochs=2)
    assert history.step == 2 and torch.equal(seen[0], X[:6])


def test_the_best_parameters_are_kept_and_patience_ends_the_run():
    guide, kept, scores = new_guide(), [], iter([1.0, 3.0, 2.0, 2.5, 9.0])

    def validate():
        kept.append(values(guide))
        torch.randn(3)  # Training does not notice.
        return next(scores)

    history = run(guide, steps=100, validate=validate, validate_every=5, patience=2)
    assert history.scores == {5: 1.0, 10: 3.0, 15: 2.0, 20: 2.5}
    assert (history.best_step, history.best_score, history.stopped) == (10, 3.0, "patience")
    assert_equal(values(guide), kept[1])
    assert history.losses == run(new_guide(), steps=20).losses


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "best"), [([NAN, -2, -1, -3], 3), ([-3, NAN, -4, -1], 4), ([-1, NAN, NAN, NAN], 1)]
)
def test_a_score_that_is_no_number_is_never_the_best(scores, best):
    guide, kept, left = new_guide(), [], iter(scores)

    def validate():
        kept.append(values(guide))
        return next(left)

    assert run(guide, epochs=4, validate=validate).best_step == best
    assert_equal(values(guide), kept[best - 1])


def test_a_run_without_scores_says_so():
    with pytest.warns(UserWarning, match="all scores of validate= are NaN, the first one after"):
        history = run(new_guide(), epochs=9, validate=lambda: NAN, patience=2)
    assert (history.step, history.stopped, history.best_step) == (2, "patience", None)
    with pytest.warns(UserWarning, match="validate= was not called in the 2 steps of the run"):
        run(new_guide(), steps=2, batch_size=8, validate=lambda: 1.0)


def test_a_callback_ends_the_run():
    seen = []
    history = run(new_guide(), steps=9, callbacks=[lambda h: seen.append(h.step) or h.step == 4])
    assert seen == [1, 2, 3, 4] and history.stopped == "callback"


def test_a_schedule_sets_the_learning_rate():
    halved = partial(ExponentialLR, gamma=0.5)
    history = run(new_guide(), steps=3, learning_rate=0.4, scheduler=halved)
    assert history.learning_rates == pytest.approx([0.4, 0.2, 0.1])


def test_an_interruption_keeps_the_best_parameters():
    guide, kept, scores = new_guide(), [], iter([1.0, 5.0, 4.0])

    def validate():
        kept.append(values(guide))
        return next(scores)

    history = run(
        guide, steps=100, validate=validate, validate_every=2, callbacks=[Interruption(7)]
    )
    assert (history.stopped, history.best_step) == ("interrupted", 4)
    assert_equal(values(guide), kept[1])


def of_functions(x, y=None):
    for site in ("w1", "w2"):
        pyro.sample(site, dist.Normal(pyro.param(f"{site}_loc", torch.zeros(3)), 0.1).to_event(1))


@pytest.mark.parametrize("optimizer", [None, "pyro"])
@pytest.mark.parametrize("elbo", [None, Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("symmetrize", [False, True])
def test_forgotten_observations_are_noticed_once(optimizer, elbo, symmetrize):
    options = {"steps": 2, "elbo": elbo, "progress": False}
    if optimizer is not None:
        options["optimizer"] = pyro.optim.Adam({"lr": 0.01})
    guide = new_guide(symmetrize=symmetrize)
    with pytest.warns(
        UserWarning, match=r"observes nothing: its sites \['w1', 'w2', 'y'\]"
    ) as seen:
        pp.fit(model, guide, X, **options)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    pp.fit(model, new_guide(symmetrize=symmetrize), (X, Y), **options)


def test_forgotten_observations_of_a_function_are_noticed():
    def silent(x, y=None):
        for site in ("w1", "w2"):
            value = pyro.sample(site, dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic(f"{site}_twice", 2 * value)
        if y is not None:
            pyro.factor("likelihood", -y.sum())

    with pytest.warns(UserWarning, match=r"observes nothing: its sites \['w1', 'w2'\] are all"):
        pp.fit(silent, of_functions, X, steps=1, progress=False)
    pp.fit(silent, of_functions, (X, Y), steps=1, progress=False)


def test_a_model_that_takes_a_batch_for_all_data_is_warned_of():
    def unscaled(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 0.3), obs=y)

    with pytest.warns(UserWarning, match="the 8 observations of a batch the weight 1, where an"):
        pp.fit(unscaled, AutoNormal(unscaled), (X, Y), epochs=1, batch_size=8, progress=False)
    pp.fit(unscaled, AutoNormal(unscaled), (X, Y), epochs=1, progress=False)


def test_divergence_ends_with_an_error():
    def far_off(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(1e200))

    with pytest.raises(FloatingPointError, match="at step 1: lower the learning rate"):
        pp.fit(far_off, AutoNormal(far_off), (X, Y), steps=2, progress=False)


CONTRADICTIONS = {
    "give either epochs= or steps=": {},
    "give either epochs= or": {"epochs": 1, "steps": 1},
    "steps must be positive": {"steps": 0},
    "patience= needs validate=": {"steps": 1, "patience": 2},
    "validate_every= needs validate=": {"steps": 1, "validate_every": 2},
    "batch_size must be positive": {"steps": 1, "batch_size": 0},
    "batch_size= is for tensors": {"steps": 1, "batch_size": 5, "data": [(X, Y)]},
    "must be of equal length": {"steps": 1, "data": (X, Y[:5])},
    "gave no batch": {"steps": 1, "data": []},
    "scheduler= is for optimizers of PyTorch": {
        "steps": 1,
        "optimizer": pyro.optim.Adam({}),
        "scheduler": partial(ExponentialLR, gamma=0.9),
    },
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_are_refused(message):
    with pytest.raises(ValueError, match=message):
        run(new_guide(), **CONTRADICTIONS[message])


def test_what_is_no_data_and_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="data must be a tensor, a tuple of tensors, or a loader"):
        run(new_guide(), steps=1, data=iter([(X, Y)]))
    with pytest.raises(TypeError, match="optimizer must make an optimizer of parameters"):
        run(new_guide(), steps=1, optimizer=torch.optim.SGD([torch.zeros(1)], lr=0.1))


def test_smoothing_is_a_weighted_mean():
    history = pp.History(losses=[-1.0, -2.0, -4.0])
    assert history.smoothed_elbo(1) == [1.0, 2.0, 4.0]
    assert history.smoothed_elbo(2)[-1] == pytest.approx((4 + 2 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4))


@pytest.mark.parametrize("data", [[(X, Y), (X[:0], Y[:0])], (X[:0], Y[:0]), [{"x": X[:0]}]])
def test_batches_without_observations_are_refused(data):
    with pytest.raises(ValueError, match="holds no observations"):
        run(new_guide(), data, steps=2)
