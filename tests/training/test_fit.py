"""The training loop is the loop one would write, ends as it is told, and goes on where it was."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp

X = torch.linspace(-1, 1, 24, dtype=torch.float64)
Y = torch.sin(2 * X)


def model(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    f = (torch.tanh(x[..., None] * w1) * w2).sum(-1)
    with pyro.plate("data", len(X), subsample=x):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def new_guide(kind=AutoNormal, symmetrize=False):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    base = kind(model, init_loc_fn=pp.init_to_fan_in)
    symmetry = pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}})
    return pp.AutoSymmetrized(base, symmetry) if symmetrize else base


def run(guide, data=(X, Y), **kwargs):
    pyro.set_rng_seed(1)
    return pp.fit(model, guide, data, progress=False, **kwargs)


def values(guide):
    return [parameter.detach().clone() for parameter in guide.parameters()]


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_parameters_of_modules_and_of_the_store_are_trained_alike(kind):
    fitted = []
    for local in (False, True):
        pyro.settings.set(module_local_params=local)
        guide = new_guide(kind)
        losses = run(guide, steps=3, elbo=Trace_ELBO()).losses
        fitted.append([torch.tensor(losses), *values(guide)])
    assert_equal(*fitted)


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


def test_a_callback_ends_the_run():
    seen = []
    history = run(new_guide(), steps=9, callbacks=[lambda h: seen.append(h.step) or h.step == 4])
    assert seen == [1, 2, 3, 4] and history.stopped == "callback"


def test_a_schedule_sets_the_learning_rate():
    halved = partial(ExponentialLR, gamma=0.5)
    history = run(new_guide(), steps=3, learning_rate=0.4, scheduler=halved)
    assert history.learning_rates == pytest.approx([0.4, 0.2, 0.1])


class Interruption:
    """Presses Ctrl-C after a step."""

    def __init__(self, step, error=KeyboardInterrupt):
        self.step, self.error = step, error

    def __call__(self, history):
        if history.step == self.step:
            raise self.error


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


OPTIMIZERS = [
    None,
    partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    ),
]


@pytest.mark.parametrize("killed_at", [4, 6, 10, 11])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loader", [False, True])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, killed_at, optimizer, loader):
    def settings():
        data = (X, Y)
        if loader:
            generator = torch.Generator().manual_seed(3)
            dataset = TensorDataset(X, Y)
            data = DataLoader(dataset, batch_size=5, shuffle=True, generator=generator)
        return {
            "data": data,
            "batch_size": None if loader else 5,
            "epochs": 4,
            "optimizer": optimizer,
            "scheduler": None if optimizer is OPTIMIZERS[-1] else partial(ExponentialLR, gamma=0.9),
            "validate": lambda: -float(sum(p.square().sum() for p in guide.parameters())),
            "validate_every": 4,
            "checkpoint_every": 3,
        }

    guide = new_guide(symmetrize=True)
    undisturbed = run(guide, **settings())
    expected = values(guide)

    path = tmp_path / "runs" / "run.pt"
    guide = new_guide(symmetrize=True)
    with pytest.raises(MemoryError):
        killer = Interruption(killed_at, MemoryError)
        run(guide, checkpoint=path, callbacks=[killer], **settings())
    guide = new_guide(symmetrize=True)
    pyro.set_rng_seed(123)
    resumed = pp.fit(model, guide, checkpoint=path, progress=False, **settings())
    assert resumed == undisturbed
    assert_equal(values(guide), expected)


def test_a_finished_run_is_not_repeated(tmp_path):
    path = tmp_path / "run.pt"
    guide = new_guide()
    history = run(guide, steps=3, checkpoint=path)
    expected = values(guide)
    guide = new_guide()
    assert run(guide, steps=3, checkpoint=path) == history
    assert_equal(values(guide), expected)
    longer = run(new_guide(), steps=5, checkpoint=path)
    assert longer.losses == run(new_guide(), steps=5).losses


def test_checkpoints_of_others_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"run.pt' is no checkpoint of pyro_perm.fit"):
        run(new_guide(), steps=3, checkpoint=path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="or of another version"):
        run(new_guide(), steps=3, checkpoint=path)
    path.unlink()
    run(new_guide(), steps=3, checkpoint=path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"of another model or guide: only the"):
        run(new_guide(AutoDiagonalNormal), steps=3, checkpoint=path)
    with pytest.raises(ValueError, match="must both have a schedule"):
        run(new_guide(), steps=5, checkpoint=path, scheduler=partial(ExponentialLR, gamma=0.9))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="or damaged"):
        run(new_guide(), steps=3, checkpoint=path)


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


def test_an_interrupted_loader_that_changed_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    long, short = [(X, Y)] * 5, [(X, Y)] * 2
    with pytest.raises(MemoryError):
        killer = Interruption(4, MemoryError)
        run(
            new_guide(),
            data=long,
            epochs=2,
            checkpoint=path,
            checkpoint_every=1,
            callbacks=[killer],
        )
    with pytest.raises(ValueError, match="gave 2 batches in an epoch, of which 3 had been seen"):
        run(new_guide(), data=short, epochs=2, checkpoint=path)


@pytest.mark.parametrize("data", [[(X, Y), (X[:0], Y[:0])], (X[:0], Y[:0]), [{"x": X[:0]}]])
def test_batches_without_observations_are_refused(data):
    with pytest.raises(ValueError, match="holds no observations"):
        run(new_guide(), data, steps=2)
