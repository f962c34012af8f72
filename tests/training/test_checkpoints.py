"""A run goes on where it was, whatever ended it."""

from functools import partial

import pyro
import pytest
import torch
from fit_runs import Interruption, X, Y, assert_equal, model, new_guide, run, values
from pyro.infer.autoguide import AutoDiagonalNormal
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp


def as_loader(batch_size):
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size, shuffle=True, generator=generator)


@pytest.mark.parametrize("loader", [False, True])
def test_the_last_epoch_counts_however_the_run_ends(loader):
    settings = {"data": as_loader(8)} if loader else {"batch_size": 8}
    settings["validate"] = lambda: torch.randn(()).item()
    by_epochs = run(new_guide(), epochs=2, **settings)
    assert by_epochs.epoch_ends == list(by_epochs.scores) == [3, 6]
    settings["data"] = as_loader(8) if loader else (X, Y)
    assert run(new_guide(), steps=6, **settings) == by_epochs
    settings["data"] = as_loader(8) if loader else (X, Y)
    called_back = run(new_guide(), steps=9, callbacks=[lambda h: h.step == 6], **settings)
    assert called_back.stopped == "callback" and called_back.scores == by_epochs.scores
    assert list(run(new_guide(), steps=4, validate=lambda: 1.0).scores) == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [5, 6])
@pytest.mark.parametrize("loader", [False, True])
def test_a_longer_run_goes_on_from_any_end(tmp_path, steps, loader):
    def ends_at(steps, **kwargs):
        guide = new_guide()
        data = as_loader(8) if loader else (X, Y)
        history = run(
            guide,
            data=data,
            batch_size=None if loader else 8,
            steps=steps,
            validate=lambda: -float(sum(p.square().sum() for p in guide.parameters())),
            **kwargs,
        )
        return history, values(guide)

    expected, at_end = ends_at(10)
    path = tmp_path / "run.pt"
    short, at_short_end = ends_at(steps, checkpoint=path)
    again, at_same_end = ends_at(steps, checkpoint=path)
    assert again == short
    assert_equal(at_same_end, at_short_end)
    longer, at_longer_end = ends_at(10, checkpoint=path)
    assert longer == expected
    assert_equal(at_longer_end, at_end)


def test_a_run_killed_before_its_last_validation_is_validated(tmp_path):
    path = tmp_path / "run.pt"
    settings = {"steps": 6, "batch_size": 8, "checkpoint": path}
    run(new_guide(), **settings, validate=lambda: 1.0, validate_every=4)
    state = torch.load(path)
    state["history"]["epoch_ends"] = [3]  # As it was when the last step had been taken.
    torch.save(state, path)
    assert list(run(new_guide(), **settings, validate=lambda: 1.0).scores) == [4, 6]


def test_patience_that_ended_a_run_ends_it_again(tmp_path):
    settings = {"steps": 9, "validate": lambda: 1.0, "patience": 2}
    settings["checkpoint"] = tmp_path / "run.pt"
    assert run(new_guide(), **settings) == run(new_guide(), **settings)


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
