"""Small models whose permutation group, and so whose exact answer, is known.

Every model runs under vectorized particles, and follows the ``torch.nn`` layout of weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

import pyro_perm as pp


@dataclass(frozen=True)
class Problem:
    """A model, arguments to call it with, and its permutation spec."""

    name: str
    model: Callable
    args: tuple
    spec: dict
    max_plate_nesting: int = 1
    create_plates: Callable | None = field(default=None)

    @property
    def is_coupled(self) -> bool:
        """Whether some site is permuted along several of its dimensions."""
        axes = [
            (site, axis)
            for sites in self.spec.values()
            for site, axes in sites.items()
            for axis in (axes if isinstance(axes, tuple) else [axes])
        ]
        return len({site for site, _ in axes}) < len(axes)

    def symmetry(self) -> pp.PermutationSymmetry:
        return pp.PermutationSymmetry(self.spec)

    def base(self, **kwargs) -> AutoNormal:
        options = {"init_loc_fn": pp.init_to_fan_in, "init_scale": 0.4} | kwargs
        return AutoNormal(self.model, create_plates=self.create_plates, **options)

    def guide(self, estimator=None, *, permute=True, **kwargs) -> pp.AutoSymmetrized:
        base = self.base(**kwargs)
        return pp.AutoSymmetrized(base, self.symmetry(), estimator=estimator, permute=permute)

    def __str__(self) -> str:
        return self.name


def normal(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """A site with independent ``N(0, scale^2)`` entries."""
    loc = torch.zeros(shape)
    return pyro.sample(name, dist.Normal(loc, scale).to_event(len(shape)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for weights that may carry a batch of particles."""
    out = x @ weight.mT
    return out if bias is None else out + bias.unsqueeze(-2)


def observe(f: Tensor, y: Tensor | None) -> None:
    """Gaussian observations of a function with one output, shape ``(*particles, 1, N, 1)``."""
    f = f.squeeze(-1)
    f = f.reshape(*f.shape[:-2], f.shape[-1])
    with pyro.plate("data", f.shape[-1], dim=-1):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def _data(num: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return x, torch.sin(2 * x[:, 0])


def one_hidden_layer(units: int = 4, activation: Callable = torch.tanh) -> Problem:
    def model(x, y):
        w1, b1 = normal("w1", units, 2), normal("b1", units)
        w2, b2 = normal("w2", 1, units), normal("b2", 1)
        observe(linear(activation(linear(x, w1, b1)), w2, b2), y)

    spec = {"hidden": {"w1": 0, "b1": 0, "w2": 1}}
    return Problem("one_hidden_layer", model, _data(12, 2), spec)


def two_hidden_layers(
    first: int = 3, second: int = 4, activation: Callable = torch.relu
) -> Problem:
    def model(x, y):
        w1, b1 = normal("w1", first, 2), normal("b1", first)
        w2, b2 = normal("w2", second, first), normal("b2", second)
        w3 = normal("w3", 1, second)
        h = activation(linear(x, w1, b1))
        observe(linear(activation(linear(h, w2, b2)), w3), y)

    spec = {"first": {"w1": 0, "b1": 0, "w2": 1}, "second": {"w2": 0, "b2": 0, "w3": 1}}
    return Problem("two_hidden_layers", model, _data(12, 2), spec)


def three_hidden_layers() -> Problem:
    def model(x, y):
        w1, w2 = normal("w1", 3, 2), normal("w2", 2, 3)
        w3, w4 = normal("w3", 3, 2), normal("w4", 1, 3)
        h = torch.tanh(linear(torch.tanh(linear(x, w1)), w2))
        observe(linear(torch.tanh(linear(h, w3)), w4), y)

    spec = {"a": {"w1": 0, "w2": 1}, "b": {"w2": 0, "w3": 1}, "c": {"w3": 0, "w4": 1}}
    return Problem("three_hidden_layers", model, _data(8, 2), spec)


def flattened_channels(channels: int = 3, space: int = 2) -> Problem:
    """Channels of a 1-D convolution, flattened channel by channel into a linear layer."""

    def model(x, y):
        kernel, bias = normal("kernel", channels, 2), normal("bias", channels)
        head = normal("head", 1, channels * space)
        patches = x.unfold(-1, 2, 1)  # (N, space, 2)
        h = torch.relu(
            (patches.unsqueeze(-3) * kernel.unsqueeze(-2).unsqueeze(-4)).sum(-1)
            + bias.unsqueeze(-1).unsqueeze(-3)
        )
        observe(linear(h.flatten(-2), head), y)

    spec = {"channels": {"kernel": 0, "bias": 0, "head": pp.Axis(1, inner=space)}}
    return Problem("flattened_channels", model, _data(9, space + 1), spec)


def gated_units(units: int = 3) -> Problem:
    """One fused projection for values and gates."""

    def model(x, y):
        fused, out = normal("fused", 2 * units, 2), normal("out", 1, units)
        value, gate = linear(x, fused).chunk(2, -1)
        observe(linear(value * torch.sigmoid(gate), out), y)

    spec = {"units": {"fused": pp.Axis(0, outer=2), "out": -1}}
    return Problem("gated_units", model, _data(10, 2), spec)


def recurrent(units: int = 3, activation: Callable = torch.tanh) -> Problem:
    """A recurrent net: one group on both axes of the recurrent weight."""

    def model(x, y):
        w_in, w_rec = normal("w_in", units, 1), normal("w_rec", units, units)
        w_out = normal("w_out", 1, units)
        h = torch.zeros(())
        for t in range(x.shape[-1]):
            h = activation(linear(x[:, t : t + 1], w_in) + (linear(h, w_rec) if t else 0.0))
        observe(linear(h, w_out), y)

    spec = {"state": {"w_in": 0, "w_rec": (0, 1), "w_out": 1}}
    return Problem("recurrent", model, _data(8, 3), spec)


def hierarchical(units: int = 4) -> Problem:
    """A latent prior scale for each hidden unit, permuted with its weights."""

    def model(x, y):
        tau = pyro.sample("tau", dist.LogNormal(torch.zeros(units), 0.5).to_event(1))
        prior = dist.Normal(torch.zeros(units, 2), tau.unsqueeze(-1)).to_event(2)
        w1, w2 = pyro.sample("w1", prior), normal("w2", 1, units)
        observe(linear(torch.tanh(linear(x, w1)), w2), y)

    return Problem("hierarchical", model, _data(8, 2), {"hidden": {"tau": 0, "w1": 0, "w2": 1}})


def units_in_plate(units: int = 4) -> Problem:
    """Hidden units as a plate: the group permutes a batch dimension."""

    def model(x, y):
        with pyro.plate("units", units, dim=-1):
            w1 = pyro.sample("w1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w2 = pyro.sample("w2", dist.Normal(0.0, 1.0))
        observe(
            linear(torch.tanh(linear(x, w1.unsqueeze(-3))), w2.unsqueeze(-2).unsqueeze(-3))
            if w1.dim() > 2
            else linear(torch.tanh(linear(x, w1)), w2.unsqueeze(-2)),
            y,
        )

    return Problem("units_in_plate", model, _data(8, 2), {"hidden": {"w1": -2, "w2": -1}})


def subsampled_data(x, y):
    """The plate of :func:`local_latents`."""
    return pyro.plate("data", len(x), subsample_size=5, dim=-1)


def local_latents(units: int = 3) -> Problem:
    """A latent shift for every observation, in a subsampled plate."""

    def model(x, y):
        w1, w2 = normal("w1", units, 2), normal("w2", 1, units)
        f = linear(torch.tanh(linear(x, w1)), w2).squeeze(-1)
        f = f.reshape(*f.shape[:-2], f.shape[-1])
        with subsampled_data(x, y) as index:
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(f[..., index] + shift, 0.5), obs=y[index])

    return Problem(
        "local_latents", model, _data(10, 2), {"hidden": {"w1": 0, "w2": 1}}, 1, subsampled_data
    )


PROBLEMS = [
    one_hidden_layer(),
    two_hidden_layers(),
    three_hidden_layers(),
    flattened_channels(),
    gated_units(),
    recurrent(),
    hierarchical(),
    units_in_plate(),
    local_latents(),
]


def with_signs(problem: Problem, *, plain: tuple[str, ...] = ()) -> Problem:
    """The same problem, its units flipping their signs at all sites but the plain ones."""

    def signed(site: str, axes: Any) -> tuple[pp.Axis, ...]:
        each = axes if isinstance(axes, tuple) else (axes,)
        each = (axis if isinstance(axis, pp.Axis) else pp.Axis(axis) for axis in each)
        return tuple(replace(axis, sign=site not in plain) for axis in each)

    spec = {
        group: {site: signed(site, axes) for site, axes in sites.items()}
        for group, sites in problem.spec.items()
    }
    return replace(problem, name=f"signed_{problem.name}", spec=spec)


def with_scales(problem: Problem) -> Problem:
    """The same problem, its units rescaled: first dimensions come in, second ones go out."""

    def rescaled(axes: Any) -> tuple[pp.Axis, ...]:
        each = axes if isinstance(axes, tuple) else (axes,)
        each = (axis if isinstance(axis, pp.Axis) else pp.Axis(axis) for axis in each)
        return tuple(replace(axis, scale=-1 if axis.dim == 1 else 1) for axis in each)

    spec = {
        group: {site: rescaled(axes) for site, axes in sites.items()}
        for group, sites in problem.spec.items()
    }
    return replace(problem, name=f"rescaled_{problem.name}", spec=spec)


def one_signed_layer_of_two() -> Problem:
    """A ReLU layer, which only permutes, on a tanh layer, which flips too."""

    def model(x, y):
        w1, w2, w3 = normal("w1", 2, 2), normal("w2", 3, 2), normal("w3", 1, 3)
        observe(linear(torch.relu(linear(torch.tanh(linear(x, w1)), w2)), w3), y)

    spec = {
        "odd": {"w1": pp.Axis(0, sign=True), "w2": pp.Axis(1, sign=True)},
        "relu": {"w2": 0, "w3": 1},
    }
    return Problem("one_signed_layer_of_two", model, _data(8, 2), spec)


SIGNED_PROBLEMS = [
    with_signs(one_hidden_layer(3)),
    with_signs(two_hidden_layers(3, 3, torch.tanh)),
    with_signs(three_hidden_layers()),
    with_signs(recurrent()),
    with_signs(hierarchical(3), plain=("tau",)),
    with_signs(units_in_plate(3)),
    with_signs(local_latents()),
    one_signed_layer_of_two(),
]


def gated_units_rescaled(units: int = 3) -> Problem:
    """Values are rescaled, and permuted with their gates, which stay as they are."""
    values, gates = range(units), range(units, 2 * units)
    axes = (pp.Axis(0, index=values, scale=1), pp.Axis(0, index=gates))
    spec = {"units": {"fused": axes, "out": pp.Axis(-1, scale=-1)}}
    return replace(gated_units(units), name="rescaled_gated_units", spec=spec)


def rescaled_in_place(units: int = 4) -> Problem:
    """Rectifiers of which only the scales are asked for."""
    incoming, outgoing = (pp.Axis(dim, scale=1 - 2 * dim, permute=False) for dim in (0, 1))
    spec = {"hidden": {"w1": incoming, "b1": incoming, "w2": outgoing}}
    return replace(one_hidden_layer(units, torch.relu), name="rescaled_in_place", spec=spec)


RESCALED_PROBLEMS = [
    with_scales(one_hidden_layer(activation=torch.relu)),
    with_scales(two_hidden_layers()),
    with_scales(flattened_channels()),
    with_scales(recurrent(activation=torch.relu)),
    with_scales(with_signs(one_hidden_layer(activation=torch.abs), plain=("w2",))),
    gated_units_rescaled(),
    rescaled_in_place(),
]


@config_enumerate
def enumerated_mixture(x: Tensor) -> None:
    """Three Gaussian components, any of which may change places; classes are summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    loc = normal("loc", 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@dataclass(frozen=True)
class TwoWeightNets:
    """The tractable BNN of Gelberg et al. (2024), Fig. 4, once for every ``alpha``, side by side.

    ``f(x) = relu(w1 x) + relu(w2 x)``, data ``y = alpha |x|`` at 100 points in [-10, 10], noise of
    standard deviation 5 and prior ``N(0, 1)``. The nets are independent, and have one group each.
    """

    alphas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2)

    @property
    def x(self) -> Tensor:
        return torch.linspace(-10, 10, 100)

    def model(self) -> None:
        for net, alpha in enumerate(self.alphas):
            weights = normal(f"w{net}", 2)
            f = torch.relu(weights.unsqueeze(-1) * self.x).sum(-2)
            pyro.sample(f"y{net}", dist.Normal(f, 5.0).to_event(1), obs=alpha * self.x.abs())

    def symmetry(self) -> pp.PermutationSymmetry:
        return pp.PermutationSymmetry({f"net{i}": {f"w{i}": 0} for i in range(len(self.alphas))})

    def base(self) -> AutoNormal:
        """Asymmetric and narrow: ``w1 = w2`` is a saddle of the symmetrized objective."""
        init = init_to_value(
            values={f"w{i}": torch.tensor([0.3, -0.3]) for i in range(len(self.alphas))}
        )
        return AutoNormal(self.model, init_loc_fn=init, init_scale=0.1)

    def divergences_from_the_posterior(self, guide: AutoNormal, *, symmetrized: bool) -> Tensor:
        """``KL(q^G || p(w | D))``, or that of ``q``, of every net, by quadrature on a grid."""
        axis = torch.linspace(-3.5, 3.5, 281)
        grid = torch.cartesian_prod(axis, axis)
        f = torch.relu(grid.unsqueeze(-1) * self.x).sum(-2)
        divergences = []
        for net, alpha in enumerate(self.alphas):
            y = alpha * self.x.abs()
            log_p = -0.5 * grid.square().sum(-1) - 0.5 * ((f - y) / 5.0).square().sum(-1)
            q = dist.Normal(*guide._get_loc_and_scale(f"w{net}"))
            log_q = q.log_prob(grid).sum(-1)
            if symmetrized:
                log_q = torch.logaddexp(log_q, q.log_prob(grid.flip(-1)).sum(-1))
            log_p, log_q = log_p.log_softmax(0), log_q.log_softmax(0)
            divergences.append((log_q.exp() * (log_q - log_p)).sum())
        return torch.stack(divergences).detach()


def brute_force_log_q_symmetrized(
    symmetry: pp.PermutationSymmetry, locs: dict, scales: dict, values: dict
) -> Tensor:
    """``log 1/|G| sum_g q(g w)`` by enumeration, one density evaluation an element."""
    tables = [itertools.permutations(range(size)) for size in symmetry.groups.values()]
    terms = []
    for element in itertools.product(*tables):
        g = {name: torch.tensor(p) for name, p in zip(symmetry.groups, element, strict=True)}
        moved = symmetry.apply(g, values)
        terms.append(
            sum(dist.Normal(locs[s], scales[s]).log_prob(moved[s]).sum() for s in symmetry.sites)
        )
    return torch.stack(terms).logsumexp(0) - symmetry.log_order
