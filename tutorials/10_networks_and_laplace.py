# %% [markdown]
# # Networks of torch.nn and a Laplace posterior
#
# Most networks are a `torch.nn.Module`, and most posteriors come from another library. This
# tutorial takes a small convolutional classifier, written as torchvision's are, and its posterior
# by laplace-torch (`pip install laplace-torch`), to a certified evidence and an aligned ensemble.
# Nothing here is written as a Pyro model, or trained by Pyro.

# %%
import pyro
import torch
from laplace import Laplace
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp

pyro.set_rng_seed(0)

# %% [markdown]
# ## A network, trained a few times
#
# The weight decay is that of a standard normal prior, so that training ends at a mode of the
# posterior.


# %%
class SmallVGG(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, width: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2)),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


digits = load_digits()
x = torch.tensor(digits.images[:600], dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target[:600])
(x, x_test), (y, y_test) = x.split(400), y.split(400)


# %%
def trained(seed):
    torch.manual_seed(seed)
    network = SmallVGG()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        prior = sum(parameter.square().sum() for parameter in network.parameters()) / 2
        (cross_entropy(network(x), y, reduction="sum") + prior).backward()
        optimizer.step()
    return network.eval()


networks = [trained(seed) for seed in range(3)]

# %% [markdown]
# ## Its symmetry, and the ensemble in one mode
#
# The symmetry is read off the operations. The channels of the second convolution reach the
# classifier flattened, four places each: `inner=4`.

# %%
symmetry = pp.find_symmetry(networks[0], x[:8])
print(symmetry.summary())

# %% [markdown]
# `align` takes the `state_dict`s as they are, and returns such. On the straight line between two of
# the networks the loss rises much less after alignment.

# %%
states = [network.state_dict() for network in networks]
ensemble = pp.align(states, symmetry)


def loss(state):
    return cross_entropy(functional_call(networks[0], state, x), y)


barrier = pp.interpolation_barrier(loss, states[0], states[1], symmetry, num_points=11)
print(f"barrier {barrier.original.barrier:.2f} as trained, {barrier.aligned.barrier:.2f} aligned")

# %% [markdown]
# ## The posterior of laplace-torch, with its certificate
#
# `from_laplace` reads the Gaussian, `prior_of_laplace` the prior that belongs to it, and
# `gaussian_posterior` makes a model and a guide of them.

# %%
laplace = Laplace(networks[0], "classification", "all", "diag", prior_precision=1.0)
laplace.fit(DataLoader(TensorDataset(x, y), batch_size=20))
model, guide = pp.gaussian_posterior(
    networks[0],
    pp.readers.from_laplace(laplace),
    prior=pp.readers.prior_of_laplace(laplace),
    likelihood=pp.likelihoods.categorical,
)

# %% [markdown]
# Laplace's evidence is that of one mode, but the mode has equivalent copies. What they add is
# `I(g; w)`, and is certified: nearly all of `log |G|` here, since the channels are well apart.

# %%
evidence = pp.log_evidence_laplace(
    guide,
    *(x, y),
    log_marginal_likelihood=laplace.log_marginal_likelihood(),
    num_samples=32,
    progress=False,
)
print(evidence)

# %% [markdown]
# The guide is one like any other: it predicts, and `pp.to_arviz(model, guide, x, y)` opens it in
# ArviZ. Draws of a diagonal Laplace approximation spoil the network where weights depend on each
# other, so the mode predicts better than they do.

# %%
prediction = pp.predict(model, guide, x_test, num_samples=30, progress=False)
accuracies = {
    "mode": float((networks[0](x_test).argmax(-1) == y_test).float().mean()),
    "Laplace": float(pp.metrics.accuracy(prediction.mean, y_test)),
}
print(accuracies)

# %% [markdown]
# Of a mode's copies an ensemble needs none: aligned, its networks differ in what they have learned.
# `pp.reset_statistics` renews the running moments of BatchNorm layers where weights are averaged;
# this network has none. The page "Networks of torch.nn" has priors and
# likelihoods to train such a network by Pyro, and readers of six other libraries.
