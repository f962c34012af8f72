"""Two processes under torchrun train as one process that sees both of their batches."""

import importlib.util

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, DistributedSampler
from torchrun import RANKS, ROOT, needs_gloo, require_killed, torchrun

import pyro_perm as pp

SCRIPT, FABRIC = ROOT / "docs" / "data_parallel.py", ROOT / "docs" / "fabric.py"
EPOCHS = 2

# The second process dies at its third step.
DYING = """
import os, sys
import torch
sys.path.insert(0, {folder!r})
import data_parallel
steps, take = [], torch.optim.Adam.step
def step(self, *args, **kwargs):
    steps.append(None)
    if len(steps) == 3 and os.environ["RANK"] == "1":
        os._exit(9)
    return take(self, *args, **kwargs)
torch.optim.Adam.step = step
data_parallel.main(sys.argv[1])
"""

pytestmark = [pytest.mark.slow, needs_gloo]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("data_parallel", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _as_the_processes_are():
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    pyro.settings.set(module_local_params=True)
    yield
    torch.set_num_threads(threads)


def batches(dataset):
    """Of each step: its seed, and the batches of all ranks."""
    for epoch in range(EPOCHS):
        loaders = []
        for rank in range(RANKS):
            sampler = DistributedSampler(dataset, num_replicas=RANKS, rank=rank)
            sampler.set_epoch(epoch)
            loaders.append(DataLoader(dataset, batch_size=8, sampler=sampler))
        for step, each in enumerate(zip(*loaders, strict=True)):
            yield epoch * len(loaders[0]) + step, each


def gradients(loss, seed, batch):
    pyro.set_rng_seed(seed)
    return torch.autograd.grad(loss(*batch), list(loss.parameters()))


def started(example, dataset):
    """Model, guide and loss of the example at its start."""
    pyro.set_rng_seed(0)
    model = example.Net(len(dataset))
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    loss = pp.TraceSymmetrized_ELBO()(model, guide)
    loss(*dataset[:8])
    return model, guide, loss


@pytest.mark.parametrize("script", [SCRIPT, FABRIC], ids=["DDP", "Fabric"])
def test_both_ranks_gradients_are_averaged_bit_for_bit(example, tmp_path, script):
    if script is FABRIC:
        pytest.importorskip("lightning_fabric")
    done = torchrun(script, tmp_path / "guide")
    assert done.returncode == 0, done.stderr
    dataset = example.data()
    model, guide, loss = started(example, dataset)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    sizes = []
    for seed, each in batches(dataset):
        sizes.append([len(x) for x, _ in each])
        of_ranks = [gradients(loss, seed, batch) for batch in each]
        for parameter, *grads in zip(loss.parameters(), *of_ranks, strict=True):
            parameter.grad = sum(grad / RANKS for grad in grads)
        optimizer.step()
    assert sizes[-1] == [3, 3] and sizes[0] == [8, 8]  # The last batch is a smaller one.
    loaded = dict(pp.load(model, tmp_path / "guide").named_parameters())
    for name, parameter in guide.named_parameters():
        assert torch.equal(loaded[name], parameter), name


def test_one_draw_for_all_ranks_makes_their_average_that_of_all_rows(example):
    dataset = example.data()
    _, _, loss = started(example, dataset)
    seed, each = next(batches(dataset))
    of_ranks = [gradients(loss, seed, batch) for batch in each]
    averaged = [sum(grads) / RANKS for grads in zip(*of_ranks, strict=True)]
    rows = [torch.cat(tensors) for tensors in zip(*each, strict=True)]
    torch.testing.assert_close(averaged, list(gradients(loss, seed, rows)), rtol=1e-4, atol=1e-3)


def test_a_killed_rank_ends_the_run_and_is_named(tmp_path):
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(folder=str(SCRIPT.parent)))
    done = torchrun(script, tmp_path / "guide")
    require_killed(done, rank=1, code=9)
    assert not (tmp_path / "guide").exists()
