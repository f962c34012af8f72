"""A network with priors and a likelihood, as a Pyro model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsIndex

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_perm.networks import priors
from pyro_perm.networks.likelihoods import Distribution, Likelihood
from pyro_perm.networks.local_parameters import LocalParameters
from pyro_perm.networks.priors import PriorLike
from pyro_perm.program._torch_internals import tree_map

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


class BayesianNetwork(PyroModule):
    """The Pyro model that :func:`bayesian` returns.

    Attributes:
        network: the network.
        learned: what prior and likelihood learn, where parameters are local to modules.

    :param network: the network; ``prior``, ``likelihood`` and ``dataset_size`` as there.
    """

    def __init__(
        self, network: nn.Module, prior: PriorLike, likelihood: Likelihood, dataset_size: int | None
    ) -> None:
        super().__init__()
        self.network = network
        self._prior = priors.as_prior(prior)
        self._likelihood = likelihood
        self._dataset_size = dataset_size
        self.learned = LocalParameters()

    def forward(self, inputs: Inputs, y: Tensor | None = None) -> Any:
        """Draw weights and observations.

        :param inputs: of the network; a tuple of them, or a mapping of keywords, if several.
        :param y: observations, shape ``(N, ...)``; None draws them.
        :returns: what the network returns.
        :raises ValueError: if the observations are not of the shape that the likelihood has.
        """
        with self._learned.handler():
            weights = self._weights()
            particles = self._particles(weights)
            outputs = self._outputs(weights, inputs, particles)
            observed = _require_distribution(self._likelihood(outputs))
        batch, event = observed.batch_shape, observed.event_shape
        each = batch[len(particles) :]
        if not each:
            raise ValueError(
                "the likelihood returns one distribution for all observations: it needs one for "
                "each, along the first dimension of its batch shape"
            )
        with self._plate(each + event, y):
            pyro.sample("y", observed.to_event(len(each) - 1), obs=y)
        return outputs

    @property
    def _network(self) -> nn.Module:
        """The network, all of whose parameters the attribute would register with Pyro."""
        return dict(self.named_children())["network"]

    @property
    def _learned(self) -> LocalParameters:
        """Likewise."""
        learned = dict(self.named_children())["learned"]
        assert isinstance(learned, LocalParameters)
        return learned

    def _weights(self) -> dict[str, Tensor]:
        """Draws of the parameters that have a prior, and the others that are trained."""
        weights = {}
        for name, parameter in self._network.named_parameters():
            prior = self._prior(name, parameter.detach())
            if prior is not None:
                weights[name] = pyro.sample(name, priors.of_shape(prior, name, parameter))
            elif parameter.requires_grad:
                weights[name] = _register(f"network.{name}", parameter)
        return weights

    def _particles(self, weights: Mapping[str, Tensor]) -> torch.Size:
        """Batch dimensions of weights that were drawn in vectorized particles."""
        ranks = {name: p.dim() for name, p in self._network.named_parameters()}
        batches = (w.shape[: w.dim() - ranks[name]] for name, w in weights.items())
        # The plate of the data, in which no weight lies, has a dimension on the right of them.
        batch: torch.Size = torch.broadcast_shapes(*batches)
        return batch[:-1]

    def _outputs(self, weights: Mapping[str, Tensor], inputs: Inputs, particles: torch.Size) -> Any:
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            kwargs = dict(inputs)
        else:
            args = inputs if isinstance(inputs, tuple) else (inputs,)

        def call(values: dict[str, Tensor]) -> Any:
            return torch.func.functional_call(self._network, values, args, kwargs)

        if not particles:
            return call(dict(weights))
        ranks = {name: p.dim() for name, p in self._network.named_parameters()}
        batched = {}
        for name, weight in weights.items():
            shape = weight.shape[weight.dim() - ranks[name] :]
            batched[name] = weight.expand(*particles, 1, *shape).reshape(-1, *shape)
        outputs = torch.func.vmap(call, randomness="different")(batched)
        return tree_map(lambda each: each.reshape(*particles, *each.shape[1:]), outputs)

    def _plate(self, shape: torch.Size, y: Tensor | None) -> pyro.plate:
        rows = shape[0]
        if y is None:
            return pyro.plate("data", rows)
        if y.shape != shape:
            raise ValueError(
                f"observations y are of shape {tuple(y.shape)}, but the network's outputs give a "
                f"likelihood of shape {tuple(shape)}: reshape y or the outputs"
            )
        size = self._dataset_size
        if size is None or size == rows:
            return pyro.plate("data", rows)
        if size < rows:
            raise ValueError(f"the batch has {rows} rows, more than dataset_size = {size}")
        return pyro.plate("data", size, subsample_size=rows)


def _register(name: str, parameter: nn.Parameter) -> Tensor:
    """A parameter of the network as one of Pyro's.

    :raises ValueError: if Pyro has the parameter of another network under the same name.
    """
    known: Tensor = pyro.param(name, parameter)
    if isinstance(known, nn.Parameter) and known is not parameter:
        raise ValueError(
            f"Pyro's parameter '{name}' is that of another network, which this one would share: "
            "call pyro.settings.set(module_local_params=True) first, or pyro.clear_param_store()"
        )
    return known


def _require_likelihood(likelihood: Any) -> None:
    if isinstance(likelihood, TorchDistributionMixin) or not callable(likelihood):
        raise TypeError(
            "likelihood must be a function of the network's outputs that returns the distribution "
            "of the observations, such as pp.likelihoods.categorical or lambda f: Normal(f, 1.0), "
            f"but is a {type(likelihood).__name__}"
        )


def _require_distribution(observed: Any) -> Distribution:
    if isinstance(observed, TorchDistributionMixin):
        return observed
    raise TypeError(
        f"the likelihood returned a {type(observed).__name__} in place of a distribution of the "
        "observations: if it makes likelihoods, as those with a scale do, call it, such as "
        "likelihood=pp.likelihoods.gaussian(0.1) or pp.likelihoods.gaussian_of_learned_scale()"
    )


def bayesian(
    network: nn.Module,
    *,
    prior: PriorLike = priors.standard_normal,
    likelihood: Likelihood,
    dataset_size: int | None = None,
) -> BayesianNetwork:
    """The Pyro model of a network: priors on its parameters, and a likelihood of its outputs.

    Latent sites have the names of the parameters, observations are site ``"y"`` in plate
    ``"data"``. Any guide and any inference of Pyro takes it. Usage:

    >>> import pyro, torch
    >>> from pyro.infer.autoguide import AutoNormal
    >>> from torch import nn
    >>> import pyro_perm as pp
    >>> network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> model = pp.bayesian(
    ...     network, prior=pp.priors.fan_in(), likelihood=pp.likelihoods.categorical
    ... )
    >>> x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    >>> guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
    >>> optimizer = pyro.optim.Adam({"lr": 0.01})
    >>> svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.Trace_ELBO())
    >>> _ = svi.step(x, y)
    >>> guide.symmetry
    PermutationSymmetry({
        'P0': {'0.weight': -2, '0.bias': -1, '2.weight': -1},
    })

    A parameter without a prior stays what it is: if it requires a gradient, training fits it with
    the guide, else it is a constant. What holds one number a unit then tells units apart, and ends
    the symmetry: see :func:`find_symmetry`'s ``reasons``.

    :param network: the network. It is not copied, and runs in its present mode: call ``train()`` or
        ``eval()`` of the model.
    :param prior: a distribution for every entry of all parameters; or a function from a parameter's
        name and value to a distribution, or None for no prior, such as those in
        ``pyro_perm.priors``; or a dictionary from patterns of names to one of them, the first
        match counting: ``{"fc.*": Normal(0.0, 1.0)}`` is Bayesian in its last layer only. It takes
        the precision and the device of the parameter.
    :param likelihood: a function of the outputs, such as those in ``pyro_perm.likelihoods``. It
        returns the distribution of the observations, whose batch shape starts with ``(N,)``.
    :param dataset_size: number of observations in all; batches are then scaled up to it.
    :raises ValueError: if a pattern matches no parameter.
    :raises TypeError: if prior, likelihood or size is none of these.
    """
    named = dict(network.named_parameters())
    priors.require_matches(prior, list(named))
    _require_likelihood(likelihood)
    if not isinstance(dataset_size, SupportsIndex | None):
        raise TypeError(f"dataset_size is a number of rows, an int, but is {dataset_size!r}")
    return BayesianNetwork(network, prior, likelihood, dataset_size)
