"""LeNet on digits in two processes: torchrun --nproc-per-node 2 docs/lenet.py FOLDER EPOCHS."""

import sys
from functools import partial
from pathlib import Path

import pyro
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pyro_perm as pp

pyro.settings.set(module_local_params=True)
distributed.init_process_group("gloo")
pyro.set_rng_seed(0)  # The same start, symmetry and draws in every process.
pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
images = pixels.float().reshape(-1, 1, 8, 8) / 16
train, held_out = TensorDataset(images[:1400], labels[:1400]), (images[1400:], labels[1400:])
layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
layers += [nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
lenet = nn.Sequential(*layers, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
model = pp.bayesian(lenet, likelihood=pp.likelihoods.categorical, dataset_size=len(train))
guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05))
predict = partial(pp.predict, model, guide, *held_out, num_samples=20, progress=False)
recipe = {"kl_weight": pp.linear_warm_up(300), "patience": 5, "epochs": int(sys.argv[2])}
recipe["validate"] = lambda: predict().log_predictive_density.mean().item()
loader = DataLoader(train, batch_size=50, sampler=DistributedSampler(train))
saved = {"checkpoint": Path(sys.argv[1], "run.pt"), "checkpoint_every": 10}
history = pp.fit(model, guide, loader, parallel=DistributedDataParallel, **recipe, **saved)
if distributed.get_rank() == 0:
    print(f"{history.stopped}, best score {history.best_score:.3f} at step {history.best_step}")
    print(pp.symmetrized_elbo(model, guide, DataLoader(train, batch_size=700), num_samples=16))
    pp.save(guide, Path(sys.argv[1], "guide"))
distributed.destroy_process_group()
