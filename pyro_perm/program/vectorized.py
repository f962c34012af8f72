"""Apply a function to every draw: many draws at once where ``vmap`` can, one by one elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

Values = dict[str, Tensor]
Datasets = dict[str, Values]
Function = Callable[[Values], Datasets]


@dataclass(frozen=True)
class DrawMapper:
    """Applies a function to every draw, and stacks what it returns.

    The first draw goes alone, so that the function can set up what it needs, and Pyro validates
    the distributions once.

    Attributes:
        at_once: how many draws to vectorize over at once; 1 goes one by one.
        progress: whether to show a progress bar.
    """

    at_once: int
    progress: bool

    def __call__(
        self, function: Function, draws: Mapping[str, Tensor], *, description: str
    ) -> Datasets:
        """Apply a function to every draw.

        :param function: from the values of one draw to datasets of values; may sample.
        :param draws: name -> values, shape ``(num_draws, *shape)``.
        :param description: of the progress bar.
        :returns: dataset -> name -> values, shape ``(num_draws, *shape)``.
        """
        num = len(next(iter(draws.values())))
        chunks: list[Datasets] = []
        done, size, most = 0, 1, self.at_once
        with tqdm(total=num, desc=description, leave=False, disable=not self.progress) as bar:
            while done < num:
                chunk = {name: values[done : done + size] for name, values in draws.items()}
                result = _alone(function, chunk) if size == 1 else _together(function, chunk)
                if result is None:
                    size = most = 1
                    continue
                chunks.append(result)
                done += size
                bar.update(size)
                size = min(most, num - done)
        return {
            dataset: {
                name: torch.cat([chunk[dataset][name] for chunk in chunks]) for name in values
            }
            for dataset, values in chunks[0].items()
        }


def _alone(function: Function, draws: Values) -> Datasets:
    result = function({name: values[0] for name, values in draws.items()})
    return {
        dataset: {name: value.unsqueeze(0) for name, value in values.items()}
        for dataset, values in result.items()
    }


def _together(function: Function, draws: Values) -> Datasets | None:
    """The same for many draws; None where the function does not vectorize."""
    try:
        # Validation asks for the truth of a tensor, which has many answers here.
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            result: Datasets = torch.func.vmap(function, randomness="different")(draws)
            return result
    except Exception:  # If it is the function's own fault, it comes back with one draw.
        return None
