"""Initial values that tell the units of a layer apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor
from torch.distributions import biject_to

from pyro_perm.program._pyro_internals import by_default


def init_to_fan_in(
    site: dict[str, Any] | None = None, *, out_dim: int = 0
) -> Tensor | Callable[..., Any]:
    """Draw weights from ``N(0, 1 / fan_in)``, so that hidden units start apart.

    ``AutoNormal`` starts every real-valued site at zero. There all units of a layer coincide, which
    is a saddle of the symmetrized objective: its gradient treats all units alike. Usage:

    >>> import pyro
    >>> from pyro.infer.autoguide import AutoNormal
    >>> import pyro_perm as pp
    >>> def model():
    ...     pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([200, 100]).to_event(2))
    >>> guide = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    >>> draw = guide()
    >>> print(f"{guide.median()['w'].std():.2f} = 1 / sqrt(100)")
    0.10 = 1 / sqrt(100)

    The fan-in of a site is the product of its event dimensions other than ``out_dim``, as for
    ``torch.nn`` weights; biases and other vectors are drawn with standard deviation 0.1, and sites
    on a constrained support start where :func:`pyro.infer.autoguide.init_to_feasible` puts them.

    :param site: a site of the model, or None for a function of the site.
    :param out_dim: dimension of the event that runs over the units of the next layer; 1 for models
        that write ``x @ weight``.
    :returns: the initial value, of the site's shape.
    """
    if site is None:
        return functools.partial(init_to_fan_in, out_dim=out_dim)
    value: Tensor = init_to_feasible(site)
    if not _is_real(site["fn"].support):
        return value
    event_shape = site["fn"].event_shape
    fan_in = math.prod(event_shape) // event_shape[out_dim] if len(event_shape) > 1 else 100
    initial = torch.randn_like(value) / math.sqrt(max(fan_in, 1))
    return by_default(initial)


def _is_real(support: Any) -> bool:
    transform = biject_to(support)
    while isinstance(transform, torch.distributions.IndependentTransform):
        transform = transform.base_transform
    return bool(transform == torch.distributions.transforms.identity_transform)
