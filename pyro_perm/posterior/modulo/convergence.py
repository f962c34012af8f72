"""Convergence diagnostics of MCMC chains, freed of what is due to the symmetry alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.posterior.modulo.alignment import align

_FEWEST_CHAINS, _FEWEST_DRAWS = 2, 4


@dataclass(frozen=True)
class Diagnostics:
    """ArviZ's diagnostics of every entry of some variables.

    Attributes:
        rhat: variable -> rank-normalized split R-hat (Vehtari et al. 2021), its shape being the
            variable's.
        ess: variable -> bulk effective sample size, likewise.
    """

    rhat: dict[str, NDArray[np.float64]]
    ess: dict[str, NDArray[np.float64]]

    @property
    def largest_rhat(self) -> float:
        """The largest R-hat of all entries."""
        return float(max(values.max() for values in self.rhat.values()))

    @property
    def smallest_ess(self) -> float:
        """The smallest effective sample size of all entries."""
        return float(min(values.min() for values in self.ess.values()))


@dataclass(frozen=True)
class SymmetryAwareDiagnostics:
    """Diagnostics of the same chains in three spaces.

    Attributes:
        original: of the weights as they were drawn. Chains in different equivalent modes disagree
            here, although they may agree on every prediction.
        aligned: of the weights, all draws moved to one mode.
        functions: of the functions of the weights that were given; None without any.
    """

    original: Diagnostics
    aligned: Diagnostics
    functions: Diagnostics | None


def convergence_diagnostics(
    samples: Mapping[str, Tensor],
    symmetry: PermutationSymmetry,
    functions: Mapping[str, Tensor] | None = None,
) -> SymmetryAwareDiagnostics:
    """R-hat and effective sample size before and after alignment, and in function space.

    ``mcmc.get_samples(group_by_chain=True)`` has the samples of an MCMC run. Here two chains sit in
    equivalent modes:

    >>> import torch
    >>> import pyro_perm as pp
    >>> modes = torch.tensor([[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    >>> samples = {"w": modes.unsqueeze(1) + 0.1 * torch.randn(2, 200, 3)}
    >>> functions = {"sum": samples["w"].sum(-1)}
    >>> symmetry = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (3,)})
    >>> diagnostics = pp.convergence_diagnostics(samples, symmetry, functions)
    >>> diagnostics.original.largest_rhat > 1.5
    True
    >>> diagnostics.aligned.largest_rhat < 1.1, diagnostics.functions.largest_rhat < 1.1
    (True, True)

    :param samples: site -> shape ``(chain, draw, *site shape)``.
    :param symmetry: as in :func:`align`, which moves the draws.
    :param functions: name -> function of the weights that no permutation changes, such as the
        network's outputs at some inputs, shape ``(chain, draw, ...)``.
    :raises ValueError: if there are fewer than two chains or four draws, or the samples do not fit
        the symmetry.
    """
    aligned = align(samples, symmetry).samples
    return SymmetryAwareDiagnostics(
        original=_diagnostics(samples),
        aligned=_diagnostics(aligned),
        functions=None if functions is None else _diagnostics(functions),
    )


def _diagnostics(variables: Mapping[str, Tensor]) -> Diagnostics:
    import arviz  # Importing pyro_perm shall not take the seconds that ArviZ takes.

    arrays = {name: _chains(name, value) for name, value in variables.items()}
    return Diagnostics(
        rhat={name: _entrywise(arviz.rhat, array) for name, array in arrays.items()},
        ess={name: _entrywise(arviz.ess, array) for name, array in arrays.items()},
    )


def _chains(name: str, value: Tensor) -> NDArray[Any]:
    if value.dim() < 2 or value.shape[0] < _FEWEST_CHAINS or value.shape[1] < _FEWEST_DRAWS:
        raise ValueError(
            f"'{name}' has shape {tuple(value.shape)}, but needs (chain, draw, ...) with at least "
            f"{_FEWEST_CHAINS} chains of {_FEWEST_DRAWS} draws, as of "
            "mcmc.get_samples(group_by_chain=True)"
        )
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array


def _entrywise(statistic: Any, chains: NDArray[Any]) -> NDArray[np.float64]:
    """One entry at a time: ArviZ 0.x takes arrays of chains and draws only."""
    entries = chains.reshape(*chains.shape[:2], -1)
    values = [float(statistic(entries[:, :, k])) for k in range(entries.shape[-1])]
    return np.array(values).reshape(chains.shape[2:])
