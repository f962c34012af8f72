"""Processes that share a run decide alike, see rows of their own, and change no number."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchrun import needs_gloo, torchrun

import pyro_perm as pp

X = torch.linspace(-1, 1, 24, dtype=torch.float64)
DATA = TensorDataset(X.unsqueeze(-1), torch.sin(2 * X))

# Scores that only the second process gets worse and worse.
SCORES = """
import sys
from pathlib import Path
import pyro, torch
from pyro.infer.autoguide import AutoNormal
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import pyro_perm as pp

distributed.init_process_group("gloo")
pyro.settings.set(module_local_params=True)
rank, x = distributed.get_rank(), torch.linspace(-1, 1, 8).unsqueeze(-1)
model = pp.bayesian(nn.Linear(1, 1), likelihood=pp.likelihoods.gaussian(1.0), dataset_size=8)
guide, data = AutoNormal(model), TensorDataset(x, x)
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data))
scores = []
def score():
    scores.append(-len(scores) if rank else len(scores))
    return scores[-1]
history = pp.fit(
    model, guide, loader, epochs=3, validate=score, patience=1,
    parallel=DistributedDataParallel, checkpoint=Path(sys.argv[1], f"{rank}.pt"),
)
values = torch.cat([p.detach().flatten() for p in guide.parameters()])
torch.save((history.stopped, history.scores, values), Path(sys.argv[1], f"result-{rank}"))
"""


@pytest.mark.slow
@needs_gloo
def test_processes_decide_by_the_scores_of_the_first(tmp_path):
    script = tmp_path / "scores.py"
    script.write_text(SCORES)
    done = torchrun(script, tmp_path)
    assert done.returncode == 0, done.stderr
    (stopped, scores, values), other = (torch.load(tmp_path / f"result-{rank}") for rank in (0, 1))
    assert (stopped, scores) == ("finished", {2: 0.0, 4: 1.0, 6: 2.0}) == other[:2]
    assert torch.equal(values, other[2])
    assert (tmp_path / "0.pt").exists() and not (tmp_path / "1.pt").exists()


@pytest.fixture
def one_process(tmp_path):
    pyro.settings.set(module_local_params=True)
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def new(num=4):
    pyro.set_rng_seed(0)
    network = nn.Sequential(nn.Linear(1, num), nn.Tanh(), nn.Linear(num, 1), nn.Flatten(0))
    likelihood = pp.likelihoods.gaussian(0.3)
    model = pp.bayesian(network, likelihood=likelihood, dataset_size=len(DATA))
    return model, pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))


def loader():
    return DataLoader(DATA, batch_size=10, sampler=DistributedSampler(DATA, 1, 0))


def fit(**options):
    model, guide = new()
    history = pp.fit(model, guide, loader(), progress=False, **options)
    return history.losses, [parameter.detach().clone() for parameter in guide.parameters()]


def fabric(loss):
    """What `parallel=fabric.setup_module` does, where Lightning is installed."""
    module = pytest.importorskip("lightning_fabric")
    return module.Fabric(accelerator="cpu", devices=1).setup_module(loss)


@needs_gloo
@pytest.mark.parametrize("engine", [DistributedDataParallel, fabric])
@pytest.mark.parametrize("elbo", [pp.FunctionalSymmetrized_ELBO, pp.TraceSymmetrized_ELBO])
def test_an_engine_of_one_process_changes_no_number(one_process, elbo, engine):
    def fitted(**options):
        recipe = {"elbo": elbo(), "kl_weight": pp.linear_warm_up(5), "epochs": 2}
        return fit(**recipe, **options)

    losses, values = fitted()
    shared, shared_values = fitted(parallel=engine)
    assert len(losses) == 6 and shared == losses
    assert len(values) > 0
    assert all(torch.equal(a, b) for a, b in zip(values, shared_values, strict=True))


@needs_gloo
def test_parameters_that_an_engine_would_not_know_are_refused(one_process):
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0).expand([len(y)]).to_event(1), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ValueError, match="parameter 'loc' belongs to no module"):
        options = {"steps": 1, "elbo": Trace_ELBO(), "progress": False}
        pp.fit(model, guide, [(X, X)], parallel=DistributedDataParallel, **options)


def test_what_would_not_be_shared_is_refused(monkeypatch):
    model, guide = new()
    with pytest.raises(ValueError, match=r"those of pyro\.optim take them as they are"):
        optimizer = pyro.optim.Adam({"lr": 0.1})
        pp.fit(model, guide, loader(), steps=1, optimizer=optimizer, parallel=lambda loss: loss)
    for name, value in {"is_initialized": True, "get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    with pytest.raises(ValueError, match="tensors would give all of them the same rows"):
        pp.fit(model, guide, DATA.tensors, steps=1, parallel=lambda loss: loss)


def test_a_sampler_shuffles_by_the_epoch_also_after_a_resumption(tmp_path):
    pyro.settings.set(module_local_params=True)

    def rows(epochs, checkpoint=None):
        seen = []
        model, guide = new()

        def watched(x, y=None):
            seen.append(x.flatten().tolist())
            return model(x, y)

        data = DataLoader(
            DATA, batch_size=24, sampler=DistributedSampler(DATA, num_replicas=1, rank=0)
        )
        options = {"elbo": pp.FunctionalSymmetrized_ELBO(), "checkpoint": checkpoint}
        pp.fit(watched, guide, data, epochs=epochs, progress=False, **options)
        return seen

    undisturbed = rows(3)[-3:]
    assert undisturbed[0] != undisturbed[1] != undisturbed[2]
    rows(2, tmp_path / "run.pt")
    assert rows(3, tmp_path / "run.pt")[-1] == undisturbed[-1]
