"""The page about discovery: its examples run, and its table is that of the architecture tests."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import networks  # noqa: F401  (registers its examples)
import pytest
import sequence_networks  # noqa: F401
import statistical_models  # noqa: F401
import torch
from bayesian import EXAMPLES, written

from pyro_perm.symmetry.discovery.rules import table

PAGE = (Path(__file__).parents[2] / "docs" / "discovery.md").read_text()
GROUPS = {example.name: written(example.groups) for example in EXAMPLES}


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))
    code = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    example = doctest.DocTestParser().get_doctest(code, {}, "discovery.md", None, 0)
    assert len(example.examples) > 30
    failures: list[str] = []
    doctest.DocTestRunner().run(example, out=failures.append)
    assert not failures, "".join(failures)


def test_every_row_names_architecture_tests_with_such_a_group() -> None:
    found = section("What is found")
    rows = re.findall(r"^\| [^`|]*(?:`[^|]*)?\| `([^`]*)` \| (.*) \|$", found, re.MULTILINE)
    assert len(rows) == found.count("\n|") - 2
    named = set()
    for group, names in rows:
        tests = names.split(", ")
        assert written([group]) <= GROUPS[tests[0]], tests[0]
        named |= set(tests)
    assert named == {name for name, groups in GROUPS.items() if groups}


def test_models_without_symmetry_are_listed() -> None:
    nothing = re.search(r"Nothing is found where nothing is: ([^.]*)\.", PAGE)
    assert nothing is not None
    names = set(nothing[1].replace("\n", " ").split(", "))
    assert names == {name for name, groups in GROUPS.items() if not groups}
