"""What a network returns, as if it had been observed: it must not change under the group."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_perm.program._torch_internals import tree_leaves


def tensors_among(tree: Any) -> list[Tensor]:
    """The tensors that a program returns, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def output_name(position: int) -> str:
    """The name of the site that observes an output."""
    return f"returned value {position}"


def likelihood_of_output(output: Tensor) -> tuple[dist.TorchDistribution, Tensor]:
    """A likelihood that tells all values of an output apart, and data for it."""
    mean = torch.view_as_real(output) if output.is_complex() else 1.0 * output
    anything = torch.arange(mean.numel(), device=mean.device).cos().view(mean.shape)
    return dist.Normal(mean, 1.0).to_event(mean.dim()), anything
