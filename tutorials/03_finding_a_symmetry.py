# %% [markdown]
# # Finding and checking a symmetry
#
# `AutoSymmetrized` finds the symmetry of a model by itself. This tutorial looks at what it finds in
# a multilayer perceptron, a convolutional net and a transformer layer, how to read the reasons
# where it finds nothing, and how to write a symmetry by hand. It ends with the symmetrized
# posterior of a model that was made from an ordinary `torch.nn` network.

# %%
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from sklearn.datasets import make_moons
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_perm as pp

pyro.set_rng_seed(0)

# %% [markdown]
# ## Any network becomes a Pyro model
#
# Pyro's own `to_pyro_module_` and `PyroSample` give every parameter of a network a prior. Nothing
# here is about symmetry, and any other way of writing the model will do, plain functions of
# `pyro.sample` included.
#
# `batch_size` is for training on minibatches: the plate draws their indices, and scales their
# likelihood. The network runs before the plate opens, since inside of it every point would get
# weights of its own.


# %%
class Classifier(PyroModule):
    """A network whose parameters have the prior N(0, 4/fan-in), and categorical observations."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        to_pyro_module_(net)
        for layer in net.modules():
            for name, value in list(layer.named_parameters(recurse=False)):
                scale = 2 * value[0].numel() ** -0.5
                prior = dist.Normal(0.0, scale).expand(value.shape).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))
        self.net = net

    def forward(self, x, y=None, batch_size=None):
        data = pyro.plate("data", len(x), subsample_size=batch_size)
        batch = data.indices
        logits = self.net(x[batch])
        with data:
            observed = None if y is None else y[batch]
            pyro.sample("y", dist.Categorical(logits=logits), obs=observed)


# %% [markdown]
# ## A multilayer perceptron
#
# `find_symmetry` runs the model once on data of the shapes used in training, and follows every
# tensor operation to the log joint. One group permutes the 16 units of the first hidden layer, one
# the 8 of the second; `log |G|` is the most that symmetrization can add to the ELBO.

# %%
x, y = map(torch.tensor, make_moons(500, noise=0.1, random_state=0))
x = ((x - x.mean(0)) / x.std(0)).float()
mlp = Classifier(
    nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
)
symmetry = pp.find_symmetry(mlp, x, y)
print(symmetry.summary())

# %% [markdown]
# Axes are counted from the right, so `net.0.weight[-2]` are the rows of the first weight matrix and
# `net.2.weight[-1]` the columns of the second. Every other axis has its reason: the columns of
# `net.0.weight` go with the columns of the data, *argument 0* of the model, and the rows of
# `net.4.weight` with the classes, which the likelihood picks out by their number. The reason ends
# in the line of the model that fixed the axis; in a notebook its file is a number for the cell.
#
# A group element is a dictionary of permutations. Acting on a draw from the prior it moves the
# weights, and leaves the log joint where it was, up to rounding.


# %%
def log_joint(values):
    return poutine.trace(poutine.condition(mlp, values)).get_trace(x, y).log_prob_sum().item()


prior_draw = poutine.trace(mlp).get_trace(x, y)
values = {site: node["value"] for site, node in prior_draw.iter_stochastic_nodes()}
g = symmetry.sample()
moved = symmetry.apply(g, values)
print("g['P1']           ", g["P1"].tolist())
print("net.2.bias of w   ", [round(b, 1) for b in values["net.2.bias"].tolist()])
print("net.2.bias of g.w ", [round(b, 1) for b in moved["net.2.bias"].tolist()])
print(f"log joint at w    {log_joint(values):.3f}")
print(f"log joint at g.w  {log_joint(moved):.3f}")

# %% [markdown]
# ## A convolutional net
#
# Channels are the units here: axis -4 of a convolution's weight is its output channel, axis -3 its
# input channel. Flattening 12 channels of 2 by 2 pixels gives the last layer 48 columns, four in a
# row for each channel. That is `Axis(-1, inner=4)`.

# %%
images, labels = torch.randn(20, 1, 8, 8), torch.randint(3, (20,))
convolutional = Classifier(
    nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(48, 3)),
    )
)
print(pp.find_symmetry(convolutional, images, labels).summary())

# %% [markdown]
# ## Attention
#
# A transformer layer has several kinds of units: the coordinates of its residual stream, on which
# nearly all of its weights act; the heads; the coordinates within the heads; and the hidden units
# of its feed-forward part. `torch` fuses queries, keys and values into one matrix of `3 * 2 * 4`
# rows, so the two heads lie along its `Axis(-2, outer=3, inner=4)`.


# %%
class Encoder(nn.Module):
    """A transformer layer of two heads, over sequences of three features."""

    def __init__(self, positions: torch.Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(
            d_model=8, nhead=2, dim_feedforward=6, dropout=0.0, batch_first=True
        )
        self.out = nn.Linear(8, 3)
        self.register_buffer("positions", positions)

    def forward(self, x):
        h = self.embed(x)
        if self.positions is not None:
            h = h + self.positions
        return self.out(self.layer(h).mean(1))


def show(symmetry):
    for group, sites in symmetry.spec.items():
        print(f"{group}: {symmetry.groups[group]} units")
        for site, axes in sites.items():
            print(f"    {site.removeprefix('net.')}: {', '.join(map(str, axes))}")


sequences = torch.randn(20, 5, 3)
show(pp.find_symmetry(Classifier(Encoder()), sequences, labels))

# %% [markdown]
# With a code for the position added to the stream, its coordinates are tied to those of a constant
# tensor, which nothing permutes. That group is gone, the other three remain, and the reason names
# the tensor and the line.

# %%
coded = pp.find_symmetry(Classifier(Encoder(torch.randn(5, 8))), sequences, labels)
print(coded.groups)
print(coded.reasons["net.embed.bias[-1]"])

# %% [markdown]
# The priors count as well. If they tell the units apart, only units with equal priors may trade
# places: here three units of scale 1, two of scale 2, and one alone.


# %%
def two_kinds_of_units(x, y):
    scale = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(2, 6), scale).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=torch.tanh(x @ w1) @ w2), obs=y)


print(pp.find_symmetry(two_kinds_of_units, x, y.float()).summary())

# %% [markdown]
# What has no prior cannot be permuted. `Classifier` gave one to the weights of the norm below, so
# they move with its units. Without a prior, as ordinary parameters, they would stay where they are
# and end the group, with the reason that they are *not a latent site*: leave them out then, by
# `affine=False`. The running averages of a `BatchNorm` are such constants too, which
# `track_running_stats=False` leaves out.

# %%
normalized = Classifier(
    nn.Sequential(
        nn.Linear(2, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Tanh(), nn.Linear(16, 2)
    )
)
show(pp.find_symmetry(normalized, x, y))

# %% [markdown]
# ## Writing one by hand
#
# Discovery leaves alone what it does not understand. A loop over the units takes each of them out
# of its tensor by its number, and nothing is found, though the sum does not depend on their order.


# %%
def looped(x, y):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([2, 6]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    logits = sum(w2[unit] * torch.tanh(x @ w1[:, unit]) for unit in range(6))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


print(pp.find_symmetry(looped, x, y.float()).summary())

# %% [markdown]
# So say what you know: a name of your choice for each group, and the axis along which it permutes
# each site, counted from the left as in torch or from the right. `verify` returns silently if the
# log joint agrees.

# %%
by_hand = pp.PermutationSymmetry({"hidden": {"w1": 1, "w2": 0}})
by_hand.verify(looped, x, y.float())
print(by_hand.groups)

# %% [markdown]
# A structured axis is an `Axis`. This is the convolutional net of above.

# %%
by_hand = pp.PermutationSymmetry(
    {
        "first": {"net.0.weight": 0, "net.0.bias": 0, "net.3.weight": 1},
        "second": {"net.3.weight": 0, "net.3.bias": 0, "net.7.weight": pp.Axis(1, inner=4)},
    }
)
by_hand.verify(convolutional, images, labels)
print(by_hand.groups, f"log |G| = {by_hand.log_order:.1f} nats")

# %% [markdown]
# Dictionaries in the notation of git-re-basin work as they are. This one says the same as what was
# found above.

# %%
from_dictionary = pp.PermutationSymmetry.from_axes_to_perm(
    {
        "net.0.weight": ("P0", None),
        "net.0.bias": ("P0",),
        "net.2.weight": ("P1", "P0"),
        "net.2.bias": ("P1",),
        "net.4.weight": (None, "P1"),
    }
)
from_dictionary.verify(mlp, x, y)
print(from_dictionary.axes_to_perm == symmetry.axes_to_perm)

# %% [markdown]
# ## A wrong one is refused
#
# A symmetry that the model does not have would make a wrong ELBO, silently. So every symmetry is
# verified before it is used: the guide permutes each group at random points and compares the log
# joint. Here the bias was forgotten. The *mis-tied control* is what the log joint changes by where
# an axis is forgotten on purpose: the yardstick for what a wrong spec does to this model.


# %%
def verify(spec, model, *data):
    """Verify a spec, and print what is wrong with it."""
    try:
        pp.PermutationSymmetry(spec).verify(model, *data)
    except ValueError as error:
        print(f"{type(error).__name__}: {error}")


verify({"hidden": {"net.0.weight": 0, "net.2.weight": 1}}, mlp, x, y)

# %% [markdown]
# Here the flattened axis has pixels before channels, `outer` in place of `inner`. In the cell after
# it axis 0 was meant to be axis 1, so that already the sizes contradict each other.

# %%
channels = {"net.3.weight": 0, "net.3.bias": 0, "net.7.weight": pp.Axis(1, outer=4)}
verify({"channels": channels}, convolutional, images, labels)

# %%
verify({"hidden": {"net.0.weight": 0, "net.0.bias": 0, "net.2.weight": 0}}, mlp, x, y)

# %% [markdown]
# ## Less of it
#
# Any of the groups alone is a symmetry too. `subset` keeps those that you name, where another is
# not worth its time; the reasons list what was left out.

# %%
print(symmetry.subset(include=["P0"]).summary())

# %% [markdown]
# ## When there is none
#
# A prior that gives every unit a scale of its own leaves nothing to permute, and the symmetrized
# guide would be no more than the base guide. It says so at its first call.


# %%
def ordered(x, y):
    scale = 1 / torch.arange(1.0, 7.0)
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(2, 6), scale).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=torch.tanh(x @ w1) @ w2), obs=y)


try:
    pp.AutoSymmetrized(AutoNormal(ordered))(x, y.float())
except ValueError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## The symmetrized posterior
#
# With the model written, the guide is one line; it finds and verifies the symmetry at its first
# call. Passing `symmetry` as a second argument uses one of your own, verified likewise. Each step
# sees 100 points, and the ELBO at the end all of them.

# %%
pyro.set_rng_seed(0)
guide = pp.AutoSymmetrized(AutoNormal(mlp, init_loc_fn=pp.init_to_fan_in))
schedule = {"learning_rate": 0.05, "scheduler": partial(CosineAnnealingLR, T_max=300)}
pp.fit(mlp, guide, [(x, y, 100)], steps=300, progress=False, **schedule)

elbo = pp.symmetrized_elbo(mlp, guide, x, y, num_samples=50, progress=False)
print(f"ELBO(q)   {elbo.base:.1f} +- {elbo.base_standard_error:.1f} nats")
print(
    f"ELBO(q^G) between {elbo.lower:.1f} and {elbo.upper:.1f} "
    f"+- {elbo.upper_standard_error:.1f} nats"
)
print(f"gained    {elbo.mutual_information.lower:.1f} of {elbo.log_order:.1f} nats")

# %% [markdown]
# The standard errors come from the 50 draws. They are nearly the same draws' noise on both lines,
# so that the gain is known much better than either.
#
# `predict` averages the probabilities of the classes over draws of the weights.

# %%
side = torch.linspace(-2.5, 3.5, 60)
grid = torch.cartesian_prod(side, side)
probability = pp.predict(mlp, guide, grid, num_samples=200, progress=False).mean[:, 1]

fig, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
shown = ax.contourf(side, side, probability.reshape(60, 60).T, levels=11, cmap="coolwarm")
ax.scatter(*x.T, c=y, cmap="coolwarm", edgecolors="white", s=22)
ax.set(xlabel="first input", ylabel="second input")
fig.colorbar(shown, label="probability of class 1")
plt.show()
