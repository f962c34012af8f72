"""The run of data_parallel.py by Lightning Fabric: python docs/fabric.py FILE."""

import sys

import pyro
import torch
from data_parallel import Net, data
from lightning_fabric import Fabric  # lightning.fabric, of the package lightning
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader

import pyro_perm as pp


def main(path: str, epochs: int = 2) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    pyro.settings.set(module_local_params=True)
    dataset = data()
    pyro.set_rng_seed(0)
    model = Net(len(dataset))
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    elbo = pp.TraceSymmetrized_ELBO()(model, guide)
    elbo(*dataset[:8])
    adam = torch.optim.Adam(elbo.parameters(), lr=0.01)
    loss, optimizer = fabric.setup(elbo, adam)
    loader = fabric.setup_dataloaders(DataLoader(dataset, batch_size=8, shuffle=True))
    for epoch in range(epochs):
        for step, batch in enumerate(loader):
            pyro.set_rng_seed(epoch * len(loader) + step)
            optimizer.zero_grad()
            fabric.backward(loss(*batch))
            optimizer.step()
    if fabric.is_global_zero:
        pp.save(guide, path)


if __name__ == "__main__":
    main(sys.argv[1])
