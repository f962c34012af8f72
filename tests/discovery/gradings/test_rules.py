"""Every rule against its operation: what it says of degrees holds for numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyro_perm.discovery.gradings.degrees import ANY, INVARIANT, DegreeTable
from pyro_perm.discovery.gradings.linear_equations import Equations
from pyro_perm.discovery.gradings.rules import SCALES, SIGNS, Grading, GradingRules


def grid(low: float, high: float, *shape: int) -> Tensor:
    return torch.linspace(low, high, math.prod(shape), dtype=torch.float64).view(shape)


X = grid(0.05, 0.95, 2, 3) * torch.tensor([1.0, -1.0, 1.0])
Y, ROW, SQUARE = grid(-0.9, 0.6, 2, 3), grid(0.3, -0.7, 3), grid(-0.8, 0.9, 3, 3)
SEQUENCES, IMAGES, VOLUMES = (grid(-1.0, 1.0, 2, 2, *[4] * places) for places in (1, 2, 3))
INDEX, MASK = torch.tensor([2, 0, 0]), torch.tensor([True, False, True])
CHANNELS = grid(0.5, -1.5, 2)

# What operations are tried with; the others with X alone.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ["add.Tensor", "sub.Tensor", "rsub.Tensor", "mul.Tensor", "div.Tensor"], (X, Y)
    ),
    **dict.fromkeys(["maximum", "minimum", "copy", "_prelu_kernel"], (X, Y)),
    **{f"{name}.Tensor": (X, Y) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{f"{name}.Scalar": (X, 0.5) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{f"{name}.Scalar": (X, 2.0) for name in ("add", "sub", "rsub", "mul", "div", "fill")},
    **dict.fromkeys(["max.dim", "min.dim", "cumsum", "unsqueeze", "squeeze.dim"], (X, 1)),
    **dict.fromkeys(
        ["sum.dim_IntList", "mean.dim", "amax", "amin", "flip", "squeeze.dims"], (X, [1])
    ),
    **dict.fromkeys(["view", "reshape", "_unsafe_view"], (X, [3, 2])),
    **dict.fromkeys(["cat", "stack"], ([X, Y],)),
    **dict.fromkeys(["split.Tensor", "unsafe_split.Tensor"], (X, 2, 1)),
    **dict.fromkeys(["split_with_sizes", "unsafe_split_with_sizes"], (X, [1, 2], 1)),
    **dict.fromkeys(["avg_pool1d", "max_pool1d", "upsample_nearest1d"], (SEQUENCES, [2])),
    **dict.fromkeys(["avg_pool2d", "max_pool2d", "max_pool2d_with_indices"], (IMAGES, [2, 2])),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_max_pool2d"], (IMAGES, [3, 3])),
    **dict.fromkeys(["avg_pool3d", "max_pool3d", "max_pool3d_with_indices"], (VOLUMES, [2, 2, 2])),
    **dict.fromkeys(["_adaptive_avg_pool3d", "adaptive_max_pool3d"], (VOLUMES, [3, 3, 3])),
    "upsample_nearest2d": (IMAGES, [8, 8]),
    "upsample_nearest3d": (VOLUMES, [8, 8, 8]),
    "upsample_linear1d": (SEQUENCES, [8], False),
    "upsample_bilinear2d": (IMAGES, [8, 8], False),
    "upsample_trilinear3d": (VOLUMES, [8, 8, 8], False),
    "mm": (X, SQUARE),
    "mv": (X, ROW),
    "dot": (ROW, ROW + 1),
    "bmm": (torch.stack([X, Y]), torch.stack([SQUARE, SQUARE.T])),
    "addmm": (ROW, X, SQUARE),
    "addmv": (CHANNELS, X, ROW),
    "baddbmm": (ROW, torch.stack([X, Y]), torch.stack([SQUARE, SQUARE.T])),
    "convolution": (IMAGES, IMAGES[:1], CHANNELS[:1], [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "native_batch_norm": (IMAGES, CHANNELS, CHANNELS + 1, None, None, True, 0.1, 1e-5),
    "native_group_norm": (IMAGES, CHANNELS, CHANNELS + 1, 2, 2, 16, 1, 1e-5),
    "native_layer_norm": (X, [3], ROW, ROW + 1, 1e-5),
    "_weight_norm_interface": (X, CHANNELS.view(2, 1), 0),
    "where.self": (MASK, X, Y),
    "masked_fill.Scalar": (X, MASK, 0.0),
    "clamp": (X, 0.0, None),
    "clamp_min": (X, 0.0),
    "clamp_max": (X, 0.0),
    "hardtanh": (X, -0.5, 0.5),
    "threshold": (X, 0.0, 0.0),
    "pow.Tensor_Scalar": (X.abs(), 3.0),
    "sqrt": (X.abs(),),
    "rsqrt": (X.abs(),),
    "topk": (X, 2),
    "embedding": (SQUARE, INDEX),
    "index_select": (X, 1, INDEX),
    "index.Tensor": (X, [None, INDEX]),
    **dict.fromkeys(["index_add", "index_copy"], (SQUARE, 1, INDEX[:2], SQUARE[:, :2] + 1)),
    **dict.fromkeys(["scatter_add", "scatter.src"], (SQUARE, 1, INDEX.expand(3, 3), SQUARE + 1)),
    "scatter_reduce.two": (SQUARE, 1, INDEX.expand(2, 3), SQUARE + 1, "amax"),
    "select_scatter": (X, Y[0], 0, 1),
    "slice_scatter": (X, Y[:, 1:], 1, 1, None),
    "diagonal_scatter": (SQUARE, ROW),
    "_reshape_alias": (X, [3, 2], [2, 1]),
    "constant_pad_nd": (X, [1, 2]),
    "permute": (X, [1, 0]),
    "transpose.int": (X, 0, 1),
    "expand": (ROW, [2, 3]),
    "repeat": (X, [2, 1]),
    "select.int": (X, 1, 2),
    "slice.Tensor": (X, 1, 1, 3),
    "roll": (X, [1], [1]),
    "unfold": (X, 1, 2, 1),
    "as_strided": (X, [3, 2], [1, 3]),
    "diag_embed": (ROW,),
    "tril": (SQUARE,),
    "triu": (SQUARE,),
}


@dataclass
class Trial:
    """An operation with all its arguments in order, defaults included, as rules get them.

    :param zeroed: the number of a real argument whose entries are zero, and have any degree.
    """

    name: str
    zeroed: int | None = None

    def __post_init__(self) -> None:
        packet, _, overload = self.name.partition(".")
        self.operator = getattr(getattr(torch.ops.aten, packet), overload)
        given = ARGUMENTS.get(self.name.removesuffix(".default"), (X,))
        parameters = self.operator._schema.arguments
        arguments = [*given, *(p.default_value for p in parameters[len(given) :])]
        self.num_real = sum(map(is_real, tree_leaves(arguments)))
        numbers = iter(range(self.num_real))
        self.arguments = tree_map(
            lambda leaf: leaf * (next(numbers) != self.zeroed) if is_real(leaf) else leaf, arguments
        )

    def run(self, arguments: list[Any]) -> list[Tensor]:
        named = list(zip(self.operator._schema.arguments, arguments, strict=True))
        positional = [value for parameter, value in named if not parameter.kwarg_only]
        keywords = {p.name: value for p, value in named if p.kwarg_only}
        results = tree_leaves(self.operator(*positional, **keywords))
        return [result for result in results if isinstance(result, Tensor)]

    def degrees(self, grading: Grading) -> tuple[Equations, DegreeTable, list[Tensor]]:
        """What the rule says if each real argument has an unknown degree of its own."""
        num = self.num_real
        equations, table = Equations(grading.field, num), DegreeTable(grading.field, num)
        numbers = iter(range(num))

        def degrees_of(leaf: Any) -> Any:
            if not is_real(leaf):
                return torch.full_like(leaf, INVARIANT) if isinstance(leaf, Tensor) else leaf
            k = next(numbers)
            return torch.full(leaf.shape, ANY if k == self.zeroed else table.unknown(k))

        shapes = tuple(tuple(result.shape) for result in self.run(self.arguments))
        name = f"aten.{self.name}".removesuffix(".default")
        rules = GradingRules(grading, table, equations, name, None, shapes)
        found = grading._table[f"aten.{self.name}"](rules, *tree_map(degrees_of, self.arguments))
        results = [found] if isinstance(found, Tensor) else list(found)
        assert [tuple(result.shape) for result in results] == list(shapes)
        return equations, table, results


def is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def names(grading: Grading) -> list[str]:
    return sorted(name.removeprefix("aten.") for name in grading._table if name not in ELSEWHERE)


# What in-place transposition is recorded as, what no operation is called, what writes into its
# argument beside its result, and sparse matrices.
ELSEWHERE = [
    *("aten.transpose.default", "pyro_perm.overlay.default"),
    "aten.rrelu_with_noise.default",
    *("aten._sparse_addmm.default", "aten._sparse_sparse_matmul.default"),
]


@pytest.mark.parametrize(
    ("grading", "name", "c"),
    [(SIGNS, name, -1.0) for name in names(SIGNS)]
    + [(SCALES, name, 1.7) for name in names(SCALES)],
)
def test_what_a_rule_says_of_degrees_holds_for_numbers(
    grading: Grading, name: str, c: float
) -> None:
    for zeroed in (None, *range(Trial(name).num_real)):
        check_trial(Trial(name, zeroed), grading, c)


def check_trial(trial: Trial, grading: Grading, c: float) -> None:
    before = trial.run(trial.arguments)
    equations, table, results = trial.degrees(grading)
    for solution in equations.solutions():
        numbers = iter(range(trial.num_real))

        def act(leaf: Any) -> Any:
            if not is_real(leaf):
                return leaf
            k = next(numbers)  # noqa: B023
            return leaf if k == trial.zeroed else c ** float(solution[k]) * leaf  # noqa: B023

        acted = tree_map(act, trial.arguments)
        for degrees, was, now in zip(results, before, trial.run(acted), strict=True):
            is_any = degrees == ANY
            assert bool(((was == 0) | ~was.isfinite())[is_any].all())
            expected = factors(table, degrees, solution, c) * was if is_real(was) else was
            torch.testing.assert_close(now, expected, equal_nan=True)


def factors(table: DegreeTable, degrees: Tensor, solution: Any, c: float) -> Tensor:
    def factor(degree: int) -> float:
        if degree == ANY:
            return 1.0
        form = table.difference(degree, INVARIANT)
        return float(c ** float(sum(a * x for a, x in zip(form, solution, strict=True))))

    return torch.tensor([factor(degree) for degree in degrees.flatten().tolist()]).view(
        degrees.shape
    )


# The number of independent actions that each of these rules allows, of as many arguments.
SOLUTIONS = {
    (SCALES, "mm.default"): 2,
    (SCALES, "add.Tensor"): 1,
    (SCALES, "addmm.default"): 2,
    (SCALES, "convolution.default"): 2,
    (SCALES, "relu.default"): 1,
    (SCALES, "gt.Scalar"): 0,
    (SCALES, "gt.Tensor"): 1,
    (SCALES, "hardtanh.default"): 0,
    (SCALES, "clamp.default"): 1,
    (SCALES, "native_layer_norm.default"): 1,
    (SCALES, "_weight_norm_interface.default"): 2,
    (SIGNS, "mm.default"): 2,
    (SIGNS, "hardtanh.default"): 1,
    (SIGNS, "native_batch_norm.default"): 2,
}


@pytest.mark.parametrize(("grading", "name"), SOLUTIONS)
def test_rules_allow_as_much_as_they_may(grading: Grading, name: str) -> None:
    equations, _, _ = Trial(name).degrees(grading)
    assert len(equations.solutions()) == SOLUTIONS[grading, name]


@pytest.mark.parametrize(
    ("exponent", "degree"), [(0.5, Fraction(1, 2)), (-2.0, Fraction(-2)), (1 / 3, Fraction(1, 3))]
)
def test_powers_have_rational_degrees(exponent: float, degree: Fraction) -> None:
    table, rule = DegreeTable(SCALES.field, 1), SCALES._table["aten.pow.Tensor_Scalar"]
    equations = Equations(SCALES.field, 1)
    rules = GradingRules(SCALES, table, equations, "aten.pow", None, ((1,),))
    result = rule(rules, torch.tensor([table.unknown(0)]), exponent)
    assert isinstance(result, Tensor) and equations.has_solutions
    assert table.difference(int(result), INVARIANT) == (degree,)


def test_an_exponent_that_is_no_ratio_of_small_numbers_is_refused() -> None:
    table, rule = DegreeTable(SCALES.field, 1), SCALES._table["aten.pow.Tensor_Scalar"]
    equations = Equations(SCALES.field, 1)
    rules = GradingRules(SCALES, table, equations, "aten.pow", "model.py:3", ((1,),))
    rule(rules, torch.tensor([table.unknown(0)]), 2**0.5)
    assert not equations.has_solutions
    assert str(equations.cause).startswith("aten.pow has an exponent of 1.414")


@pytest.mark.parametrize("grading", [SIGNS, SCALES])
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("aten.constant_pad_nd", ([0, 1],), [[1, 1, ANY], [1, 1, ANY]]),
        ("aten.tril", (), [[1, ANY], [1, 1]]),
        ("aten.diag_embed", (), [[[1, ANY], [ANY, 1]], [[1, ANY], [ANY, 1]]]),
    ],
)
def test_zeros_that_operations_make_have_any_degree(
    grading: Grading, name: str, arguments: Any, expected: Any
) -> None:
    table, equations = DegreeTable(grading.field, 1), Equations(grading.field, 1)
    x = torch.full((2, 2), table.unknown(0))
    rules = GradingRules(grading, table, equations, name, None, ())
    result = grading._table[f"{name}.default"](rules, x, *arguments)
    assert isinstance(result, Tensor) and result.tolist() == expected
    assert equations.has_solutions


def test_infinity_is_left_alone_by_scales_only() -> None:
    values = torch.tensor([0.0, float("inf"), -float("inf"), 2.0])
    assert SCALES.degrees_of(values).tolist() == [ANY, ANY, ANY, INVARIANT]
    assert SIGNS.degrees_of(values).tolist() == [ANY, INVARIANT, INVARIANT, INVARIANT]
