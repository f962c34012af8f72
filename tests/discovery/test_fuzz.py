"""Soundness on random programs: whatever is found must leave alone what it must.

That is the log joint under permutations and flips, and the likelihood under scales.
``PYRO_PERM_FUZZ=5000`` checks that many programs instead of 75. ``PYTHONPATH=tests
python tests/discovery/test_fuzz.py 0 5000`` checks programs 0 to 4999 and prints, as it goes, how
many groups permute, flip and rescale, and how many of them have an effective control.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from examples.programs import Program, data
from marks import slow
from pyro import poutine
from torch import Tensor

from pyro_perm.discovery import find_symmetry, register_axis_rule
from pyro_perm.discovery.gradings.rules import SCALES, GradingRules
from pyro_perm.discovery.permutations.rules import table
from pyro_perm.program._torch_internals import EagerDispatchMode
from pyro_perm.verification import GroupCheck, SymmetryVerificationError, check_groups

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning")

NUM_PROGRAMS = int(os.environ.get("PYRO_PERM_FUZZ", "75"))
BATCH = 15
CARELESS = (
    *("mm", "cumsum", "cat", "convolution", "index_add", "scatter.src", "select_scatter"),
    *("_fft_r2c", "_sparse_addmm"),
)


def check_programs(seeds: Iterable[int]) -> list[GroupCheck]:
    """Find and verify the symmetry of random programs; programs that do not run are skipped."""
    checks = []
    for seed in seeds:
        program, args = Program(seed), data(seed)
        try:
            poutine.trace(program).get_trace(*args)
        except (ValueError, RuntimeError):
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the model reads a value")
            symmetry = find_symmetry(program, *args, signs=True, scales=True)
            checks += check_groups(symmetry, program, *args)
    return checks


class CalledOperators(EagerDispatchMode):
    """Names of all operators that are called, such as ``aten.mm.default``."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **kwargs or {})


def programs_that_call(name: str) -> list[int]:
    """Those of the first sixty programs in which a rule for an operator has a say."""
    found = []
    for seed in range(60):
        with CalledOperators() as called, contextlib.suppress(ValueError, RuntimeError):
            poutine.trace(Program(seed)).get_trace(*data(seed))
        if any(f"{each}.".startswith(f"aten.{name}.") for each in called.names):
            found.append(seed)
    return found


BATCHES = [range(start, start + BATCH) for start in range(0, NUM_PROGRAMS, BATCH)]


@pytest.mark.parametrize("seeds", [range(4), *slow(*BATCHES)], ids=str)
def test_random_programs_are_invariant(seeds: range) -> None:
    checks = check_programs(seeds)
    assert all(check.passed for check in checks)
    effective, num = effective_controls(checks)
    assert effective >= 0.9 * num > 0


def effective_controls(checks: list[GroupCheck]) -> tuple[int, int]:
    """How many groups have an effective control, and how many a control at all."""
    with_control = [check for check in checks if check.control is not None]
    return sum(check.is_effective for check in with_control), len(with_control)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARELESS)
def test_the_fuzzer_notices_a_rule_that_forgets_its_constraints(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))

    @register_axis_rule(operator(name))
    def careless(rules: table.AxisRules, *arguments: object) -> table.Axes:
        return [rules.free(size) for size in rules.result_shapes[0]]

    with pytest.raises(SymmetryVerificationError):
        check_programs(programs_that_call(name))


@pytest.mark.parametrize("name", ["tanh.default", *slow("add.Tensor", "mul.Tensor")])
def test_the_fuzzer_notices_a_degree_that_nothing_is_demanded_of(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(rules: GradingRules, *arguments: Any) -> Tensor:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        return tensors[-1].expand(rules.result_shapes[0])

    monkeypatch.setitem(SCALES._table, f"aten.{name}", careless)
    with pytest.raises(SymmetryVerificationError, match="rescaling the units of group"):
        check_programs(programs_that_call(name))


def operator(name: str) -> object:
    packet, _, overload = name.partition(".")
    found = getattr(torch.ops.aten, packet)
    return getattr(found, overload) if overload else found


def summary(action: str, checks: list[GroupCheck]) -> str:
    """One line about the groups that permute, flip or rescale."""
    those = [check for check in checks if check.action == action]
    failed = sum(not check.passed for check in those)
    effective, num = effective_controls(those)
    return (
        f"  {len(those)} groups {action}, {failed} failures, "
        f"{effective} of {num} controls effective"
    )


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    first, stop = map(int, sys.argv[1:])
    checks: list[GroupCheck] = []
    for start in range(first, stop, BATCH):
        end = min(start + BATCH, stop)
        checks += check_programs(range(start, end))
        print(f"programs {first} to {end - 1}:", flush=True)
        for action in ("permute", "flip", "rescale"):
            print(summary(action, checks), flush=True)
