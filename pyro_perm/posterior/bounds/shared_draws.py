"""Integrands of the draws of a guide, each share of them in a process of its own.

Every process draws all of them, which is cheap, and so has the random numbers of each; it runs the
model, which is not, for its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import pyro
import torch

from pyro_perm.posterior.bounds.base_elbo import BaseELBO
from pyro_perm.posterior.executors import evaluate_each
from pyro_perm.program.batches import Arguments, Data
from pyro_perm.program.inputs import Inputs
from pyro_perm.program.restoration import restored
from pyro_perm.symmetry import SymmetryGroup

_NUM_SHARES = 8


def elbos_by_shares(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Data,
    group: SymmetryGroup,
    num: int,
    executor: Executor,
) -> list[float]:
    """What :meth:`BaseELBO.draws` takes as known; nothing, if the model draws random numbers.

    :param num: number of draws.
    """
    shares = [range(first, num, _NUM_SHARES) for first in range(min(_NUM_SHARES, num))]
    inputs = data.inputs.args, dict(data.inputs.kwargs)
    cases = [(model, guide, data.loader, inputs, group, num, share) for share in shares]
    state = pyro.util.get_rng_state()
    parts = evaluate_each(_elbos_of_share, cases, executor=executor, random_state=state)
    found = dict[int, float]()
    for share, part in zip(shares, parts, strict=True):
        if part is None:
            return []
        found |= zip(share, part, strict=True)
    return [found[number] for number in range(num)]


def _elbos_of_share(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    loader: Iterable[Any] | None,
    inputs: Arguments,
    group: SymmetryGroup,
    num: int,
    share: Sequence[int],
    *,
    random_state: Any,
) -> list[float] | None:
    data = Data(Inputs(*inputs), loader)
    arguments = loader, *inputs
    with torch.no_grad(), restored(model, guide, *arguments) as writes:
        with writes:
            source = BaseELBO.of(model, guide, data, group)
        pyro.util.set_rng_state(random_state)
        return source.elbos(num, share)
