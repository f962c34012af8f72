"""Train one guide in several processes: torchrun --nproc-per-node 2 docs/data_parallel.py FILE."""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyro_perm as pp


class Net(PyroModule):
    def __init__(self, num_rows: int, width: int = 10) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.hidden, self.out = PyroModule[nn.Linear](2, width), PyroModule[nn.Linear](width, 1)
        for layer in (self.hidden, self.out):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        mean = self.out(torch.tanh(self.hidden(x))).squeeze(-1)
        with pyro.plate("data", self.num_rows, subsample_size=len(x)):  # scales to all rows
            pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def data(num: int = 101) -> TensorDataset:
    x = torch.randn(num, 2, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.sin(2 * x[:, 0]))


def main(path: str, epochs: int = 2) -> None:
    pyro.settings.set(module_local_params=True)
    distributed.init_process_group("gloo")  # "nccl" where every process has a GPU
    dataset = data()
    pyro.set_rng_seed(0)  # The same start and the same symmetry in every process.
    model = Net(len(dataset))
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    loss = pp.TraceSymmetrized_ELBO()(model, guide)
    loss(*dataset[:8])  # The first call makes the parameters that DDP is to know.
    parallel = DistributedDataParallel(loss)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
    sampler = DistributedSampler(dataset)  # As many rows, and so steps, for every process.
    loader = DataLoader(dataset, batch_size=8, sampler=sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for step, batch in enumerate(loader):
            pyro.set_rng_seed(epoch * len(loader) + step)  # The same draw in every process.
            optimizer.zero_grad()
            parallel(*batch).backward()
            optimizer.step()
    if distributed.get_rank() == 0:
        pp.save(guide, path)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
