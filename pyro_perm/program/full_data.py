"""Run a Pyro program over all of its data, also where it subsamples.

A subsampled plate takes only as many indices as the program asked for, so one run cannot see all of
them. The program runs once for each of the plate's consecutive subsamples instead, for each
combination of them where several plates subsample, and the runs are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Categorical


@dataclass(frozen=True)
class Site:
    """A sample site over all data.

    Attributes:
        value: shape ``(*batch, *event)``.
        log_prob: log-density of each entry of the batch, without scale and zero where masked out,
            shape ``(*batch)``, in nats.
        scaled_log_prob: the same with the scale of handlers such as ``poutine.scale``, but still
            without that of subsampling.
        event_dim: number of event dimensions.
        mean: of the site's distribution, shape ``(*batch, *event)``, or None if not in closed form;
            the probabilities of the classes, shape ``(*batch, classes)``, if it is categorical.
        plates: dimension of the batch, counted from the right -> name of its plate.
        is_latent: whether the program draws it, and not as an auxiliary site.
        is_observation: whether it holds data: is observed, and neither a factor nor deterministic.
    """

    value: Tensor
    log_prob: Tensor
    scaled_log_prob: Tensor
    event_dim: int
    mean: Tensor | None
    plates: Mapping[int, str]
    is_latent: bool
    is_observation: bool


def run(
    program: Callable[..., Any],
    args: Any,
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Site]:
    """Run a model or a guide over all of its data.

    Indices that the program gives to a plate itself, as ``subsample=``, stay what they are.

    :param program: the model or the guide.
    :param args: its arguments; ``kwargs`` likewise.
    :param values: values of sites that shall not be drawn, over all data.
    :returns: name -> sample site.
    """
    sweep = _SubsampleSweep(dict(values or {}))
    sites: dict[str, Site] = {}
    while True:
        with sweep:
            trace: Any = poutine.trace(program).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and not site_is_subsample(node):
                sites[name] = _joined(sites.get(name), node, sweep.subsamples)
                if not _subsampled_frames(node, sweep.subsamples):
                    sweep.values[name] = node["value"]
        if not sweep.advance():
            return sites


def log_joint(sites: Mapping[str, Site]) -> Tensor:
    """Log-density of all sites together, in nats."""
    return torch.as_tensor(sum(site.scaled_log_prob.sum() for site in sites.values()))


class _SubsampleSweep(Messenger):
    """Gives subsampled plates their turns, and sites the values that are known.

    :param values: site -> value over all data.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.subsamples: dict[str, Tensor] = {}
        self._turns: dict[str, int] = {}
        self._last_turns: dict[str, int] = {}

    def __enter__(self) -> Any:
        self.subsamples = {}
        return super().__enter__()

    def advance(self) -> bool:
        """Go to the next combination of subsamples, the innermost plate first.

        :returns: whether there is one.
        """
        for plate in reversed(list(self._turns)):
            if self._turns[plate] < self._last_turns[plate]:
                self._turns[plate] += 1
                return True
            del self._turns[plate]
        return False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None:
            return
        if site_is_subsample(msg):
            msg["value"] = self._next_subsample(msg["name"], msg["fn"])
        elif msg["name"] in self.values:
            value = self.values[msg["name"]]
            for frame in _subsampled_frames(msg, self.subsamples):
                indices = self.subsamples[frame.name].to(value.device)
                value = value.index_select(frame.dim - msg["fn"].event_dim, indices)
            msg["value"] = value
        else:
            # Calling the distribution draws by in-place noise, which vmap refuses.
            msg["value"] = msg["fn"].sample()

    def _next_subsample(self, plate: str, fn: Any) -> Tensor | None:
        if fn.subsample_size is None or fn.subsample_size >= fn.size:
            return None
        turn = self._turns.setdefault(plate, 0)
        self._last_turns[plate] = (fn.size - 1) // fn.subsample_size
        # The last subsample overlaps with the one before it where the size is no multiple.
        start = min(turn * fn.subsample_size, fn.size - fn.subsample_size)
        self.subsamples[plate] = torch.arange(start, start + fn.subsample_size, device=fn.device)
        return self.subsamples[plate]


def _subsampled_frames(node: Any, subsamples: Mapping[str, Tensor]) -> list[Any]:
    """The plates around a site, as dimensions of it, of which this run has a part."""
    frames = node["cond_indep_stack"]
    return [frame for frame in frames if frame.vectorized and frame.name in subsamples]


def _joined(before: Site | None, node: Any, subsamples: Mapping[str, Tensor]) -> Site:
    """A site of one run together with what earlier runs had of it."""
    fn, frames = node["fn"], node["cond_indep_stack"]
    scale = node["scale"]
    for frame in frames:
        if frame.name in subsamples:
            scale = scale * frame.size / frame.full_size
    value = node["value"].expand(torch.broadcast_shapes(node["value"].shape, fn.shape()))
    log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    scaled_log_prob = scale_and_mask(node["unscaled_log_prob"], scale=scale, mask=node["mask"])
    parts = (before.value, before.log_prob, before.scaled_log_prob) if before else (None,) * 3
    place = partial(_placed, frames=_subsampled_frames(node, subsamples), subsamples=subsamples)
    mean = _mean(fn)
    if mean is not None:
        before_mean = before.mean if before else None
        mean = place(before_mean, mean, event_dim=mean.dim() - len(fn.batch_shape))
    data = node["is_observed"] and not node["infer"].get("_deterministic")
    return Site(
        value=place(parts[0], value, event_dim=fn.event_dim),
        log_prob=place(parts[1], log_prob),
        scaled_log_prob=place(parts[2], scaled_log_prob),
        event_dim=fn.event_dim,
        mean=mean,
        plates={frame.dim: frame.name for frame in frames if frame.vectorized and frame.size > 0},
        is_latent=not node["is_observed"] and not node["infer"].get("is_auxiliary"),
        is_observation=data and not site_is_factor(node),
    )


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.probs if isinstance(fn, Categorical) else fn.mean
    except (AttributeError, NotImplementedError):
        return None
    return mean


def _placed(
    before: Tensor | None,
    part: Tensor,
    *,
    frames: Sequence[Any],
    subsamples: Mapping[str, Tensor],
    event_dim: int = 0,
) -> Tensor:
    """The entries of one run at their places among those of all data."""
    if not frames:
        return part
    shape, places = list(part.shape), [torch.arange(n, device=part.device) for n in part.shape]
    for frame in frames:
        dim = frame.dim - event_dim
        shape[dim], places[dim] = frame.full_size, subsamples[frame.name].to(part.device)
    whole = part.new_zeros(shape) if before is None else before
    return whole.index_put(torch.meshgrid(*places, indexing="ij"), part)
