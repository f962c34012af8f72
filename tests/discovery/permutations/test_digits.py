"""Axes that are reshaped and come together again; whatever is done between, results move."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import examples
from rule_analysis import Analysis
from torch import Tensor

BATCH, WIDTH = 3, 12
Step = Callable[[Tensor], Tensor]


def digits_of(width: int, choose: random.Random) -> list[int]:
    """Factors of a width, from two to four; there may be ones among them."""
    sizes = []
    for _ in range(choose.randint(1, 3)):
        sizes.append(choose.choice([d for d in range(1, width + 1) if width % d == 0]))
        width //= sizes[-1]
    return [*sizes, width]


def shuffle(choose: random.Random) -> Step:
    """The channels of any width in another order of digits, all of them or some."""

    def step(x: Tensor) -> Tensor:
        sizes = digits_of(x.shape[1], choose)
        order = choose.sample(range(len(sizes)), len(sizes))
        y = x.view(BATCH, *sizes).permute(0, *(1 + place for place in order))
        if choose.random() < 0.3:
            y = y.tanh().contiguous()
        if choose.random() < 0.2:
            y = y.sum(1, keepdim=True) + y
        elif choose.random() < 0.2:
            y = y.softmax(choose.randint(1, y.dim() - 1))
        elif choose.random() < 0.2:
            y = y.flatten(1, 2).unsqueeze(1)
        return y.reshape(BATCH, -1)

    return step


def reorder(choose: random.Random) -> Step:
    """The channels of any width from the last, or some further on, or as a list says."""

    def step(x: Tensor) -> Tensor:
        places = choose.sample(range(x.shape[1]), x.shape[1])
        return choose.choice([x.flip(1), x.roll(choose.randint(-3, 3), 1), x[:, places]])

    return step


def pile(choose: random.Random, *rows: Tensor) -> Tensor:
    """Tensors of one shape side by side, and some of what is made of them."""
    dim = choose.randint(0, 2)
    piled = torch.stack(rows, dim)
    if choose.random() < 0.5:
        start = choose.randrange(len(rows))
        piled = piled.narrow(dim, start, choose.randint(1, len(rows) - start))
    if choose.random() < 0.3:
        piled = piled.tanh()
    made = choose.choice(["one", "last", "end to end", "entry by entry", "sum"])
    if made == "one":
        return piled.select(dim, choose.randrange(piled.shape[dim]))
    if made == "last":
        return piled.unbind(dim)[-1]
    if made == "sum":
        return piled.sum(dim)
    last = piled.movedim(dim, 1 if made == "end to end" else -1)
    return last.flatten(1)


def cut(choose: random.Random) -> Step:
    """Some channels, from any one on."""

    def step(x: Tensor) -> Tensor:
        start = choose.randrange(x.shape[1])
        return x[:, start : start + choose.randint(1, x.shape[1] - start)]

    return step


def program(seed: int) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Some tensors of channels, cut, joined, shuffled and added."""

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        choose, pool = random.Random(seed), [x, y]
        for _ in range(choose.randint(1, 6)):
            first, second = choose.choices(pool, k=2)
            kinds = ["shuffle", "shuffle", "reorder", "cut", "join", "add", "pile", "pile"]
            kind = choose.choice(kinds)
            if kind == "join" and first.shape[1] + second.shape[1] <= 4 * WIDTH:
                pool.append(torch.cat([first, second], 1))
            elif kind == "pile":
                rows = [x for x in pool if x.shape == first.shape]
                pool.append(pile(choose, *choose.choices(rows, k=choose.randint(1, 3))))
            elif kind == "add" and first.shape == second.shape:
                pool.append(first * 2 + second)
            else:
                step = {"reorder": reorder, "cut": cut}.get(kind, shuffle)
                pool.append(step(choose)(first))
        return pool[2:]

    return run


@settings(max_examples=examples(150))
@given(st.integers(0, 2**32))
def test_results_of_shuffles_move_with_their_arguments(seed: int) -> None:
    operation = program(seed)
    values = [torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)]
    analysis = Analysis(operation, values)
    permutations = analysis.permutations()
    moved = [
        analysis.move(*pair, permutations) for pair in zip(analysis.arguments, values, strict=True)
    ]
    before, after = operation(*values), operation(*moved)
    for node, old, new in zip(analysis.results, before, after, strict=True):
        torch.testing.assert_close(new, analysis.move(node, old, permutations))


def test_most_of_these_programs_leave_something_to_move() -> None:
    values = [torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)]
    movable = [
        sum(free_order(Analysis(program(seed), values), k) > 0 for k in range(2))
        for seed in range(40)
    ]
    assert sum(movable) > 40


def free_order(analysis: Analysis, argument: int) -> float:
    """Logarithm of the number of permutations of an argument's channels."""
    atoms = {atom for atom in analysis.atoms if atom in analysis.atoms_along(argument, 1)}
    return sum(math.lgamma(atom.size + 1) for atom in atoms)


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h,
        lambda h: h * h.sigmoid(),
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: h.unsqueeze(1).contiguous().squeeze(1),
    ],
)
def test_a_shuffle_by_itself_splits_nothing(between: Step) -> None:
    analysis = Analysis(
        lambda x: between(x.view(BATCH, 3, 4)).transpose(1, 2).reshape(BATCH, WIDTH),
        [torch.randn(BATCH, WIDTH)],
    )
    assert free_order(analysis, 0) == math.lgamma(WIDTH + 1)


def test_what_meets_a_digit_makes_products_of_all() -> None:
    def meets(x: Tensor, y: Tensor) -> list[Tensor]:
        by_group = x.view(BATCH, 3, 4)
        shuffled = by_group.transpose(1, 2).reshape(BATCH, WIDTH)
        return [shuffled, by_group + y]

    analysis = Analysis(meets, [torch.randn(BATCH, WIDTH), torch.randn(3, 4)])
    assert free_order(analysis, 0) == math.lgamma(4) + math.lgamma(5)
