"""Reader of TyXe (Ritter et al. 2022): its variant of ``AutoNormal``."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import Tensor


def from_tyxe(guide: Any, *, prefix: str = "net.") -> dict[str, tuple[Tensor, Tensor]]:
    """The Gaussian of ``tyxe.guides.AutoNormal``, such as ``bnn.net_guide``.

    :param guide: the guide, after its first call.
    :param prefix: what TyXe puts before the names of the network's parameters.
    :returns: name of the parameter -> means and standard deviations.
    :raises ValueError: if the guide was not called yet.
    """
    if guide.prototype_trace is None:
        raise ValueError("TyXe's guide has no parameters yet: call it, or fit the network, first")
    found = {}
    for site, _ in guide.prototype_trace.iter_stochastic_nodes():
        loc, scale = (attrgetter(f"{site}.{part}")(guide).detach() for part in ("loc", "scale"))
        found[site.removeprefix(prefix)] = (loc, scale)
    return found
