"""What the package relies on in torch beyond its public interface."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import constraints

from pyro_perm.program import _torch_internals as internals

aten = torch.ops.aten


class Names(internals.EagerDispatchMode):
    """Notes the operations that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_operations_by_name_and_overload() -> None:
    with torch.no_grad(), Names() as names:
        torch.zeros(2).add_(1.0).t()
    assert names.seen == ["aten::zeros", "aten::add_.Tensor", "aten::t"]


def test_the_innermost_mode_is_switched_off_if_it_is_of_the_kind() -> None:
    class Others(Names):
        pass

    with Names() as outer, Others() as inner:
        with internals.without_innermost(Others) as found:
            torch.zeros(2)
        with internals.without_innermost(Names) as also_found, internals.without_innermost(Names):
            torch.ones(2)
        torch.zeros(2).t()
    assert (found, also_found) == (inner, inner)
    assert inner.seen == ["aten::zeros", "aten::t"]
    assert outer.seen == ["aten::zeros", *inner.seen]
    with internals.without_innermost(Names) as found:
        assert found is None


@pytest.mark.slow  # a process of its own
def test_a_dispatch_mode_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from pyro_perm.program._torch_internals import EagerDispatchMode\n"
        "class Mode(EagerDispatchMode):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n"
        "        return func(*args, **(kwargs or {}))\n"
        "before = {name for name in sys.modules if name.startswith('torch._dynamo')}\n"
        "with Mode(): torch.ones(2) + 1\n"
        "after = {name for name in sys.modules if name.startswith('torch._dynamo')}\n"
        "sys.exit(len(after - before))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Callers(constraints.Constraint):
    """Allows everything, and notes the names of the functions that ask."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def check(self, value: torch.Tensor) -> torch.Tensor:
        self.seen.append(sys._getframe(1).f_code.co_name)
        return torch.ones_like(value, dtype=torch.bool)


def test_distributions_are_validated_by_the_methods_that_are_taken_for_validation() -> None:
    callers = Callers()

    class Validated(torch.distributions.Normal):
        arg_constraints = {"loc": callers, "scale": callers}  # noqa: RUF012
        support = callers

    Validated(0.0, 1.0, validate_args=True).log_prob(torch.tensor(0.0))
    assert set(callers.seen) == internals.VALIDATING_FUNCTIONS


def test_operators_are_found_by_name_and_missing_ones_skipped() -> None:
    names = "mm", "add.Tensor", "_softmax", "no_such_operator", "add.no_such_overload"
    assert list(internals.operators(*names)) == [aten.mm, aten.add.Tensor, aten._softmax]


def test_operators_are_told_from_functions_and_print_their_names() -> None:
    assert internals.is_operator(aten.mm) and internals.is_operator(aten.mm.default)
    assert not internals.is_operator(torch.mm)
    assert [str(aten.mm), str(aten.add.Tensor)] == ["aten.mm", "aten.add.Tensor"]


def test_schemas_tell_arguments_defaults_and_what_is_written() -> None:
    arguments = internals.arguments_of(aten.add_.Tensor)
    assert [argument.name for argument in arguments] == ["self", "other", "alpha"]
    assert arguments[2].default_value == 1 and arguments[2].kwarg_only
    assert arguments[0].alias_info.is_write and arguments[1].alias_info is None
    assert internals.writes(aten.add_.Tensor) and not internals.writes(aten.add.Tensor)


def test_composite_operations_decompose() -> None:
    assert internals.is_composite(aten.matmul.default)
    assert not internals.is_composite(aten.mm.default)
    with torch.no_grad(), Names() as names:
        aten.matmul.default.decompose(torch.ones(2, 3), torch.ones(3, 2))
    assert "aten::mm" in names.seen


def test_trees_keep_tensors_and_none_and_go_into_containers() -> None:
    pair = namedtuple("pair", "x y")
    tree = {"a": [1, (2, None)], "b": pair(3, torch.ones(1))}
    leaves = internals.tree_leaves(tree)
    assert leaves[:4] == [1, 2, None, 3] and isinstance(leaves[4], torch.Tensor)
    assert internals.tree_map(type, tree)["b"] == pair(int, torch.Tensor)


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse BS:UserWarning")
@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        torch.Tensor.to_sparse_csc,
        lambda x: x.to_sparse_bsr((1, 1)),
        lambda x: x.to_sparse_bsc((1, 1)),
    ],
)
def test_sparse_tensors_are_made_of_dense_ones(convert: Any) -> None:
    parts = internals.sparse_parts(convert(torch.diag(torch.tensor([1.0, 2.0, 3.0]))))
    assert all(part.layout == torch.strided for part in parts)
    assert any(part.flatten().tolist() == [1.0, 2.0, 3.0] for part in parts)
    assert internals.sparse_parts(torch.ones(2)) == []


def test_autograd_records_inside_of_an_operator() -> None:
    @torch.library.custom_op(
        "pyro_perm_test::slope", mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    def slope(x: torch.Tensor) -> torch.Tensor:
        with internals.autograd_in_operators():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(leaf.square().sum(), leaf)[0]

    for requires_grad in (False, True):
        x = torch.ones(2, requires_grad=requires_grad)
        assert slope(x).tolist() == [2.0, 2.0]
        assert not x.detach().square().requires_grad  # Afterwards all is as before.


def test_tensors_without_contents_are_told_from_others() -> None:
    def told(x: torch.Tensor) -> list[bool]:
        found = [internals.has_no_contents(x)]
        torch.func.vmap(lambda row: (found.append(internals.has_no_contents(row)), row)[1])(x)
        return found

    x = torch.ones(2, 3)
    assert told(x) == [False, False]
    with FakeTensorMode() as mode:
        assert told(mode.from_tensor(x)) == [True, True]
