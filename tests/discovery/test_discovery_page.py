"""The page about discovery has the table of the architecture tests."""

from __future__ import annotations

import re
from pathlib import Path

import examples.graphs_and_spectra
import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
from examples.bayesian import EXAMPLES, written

PAGE = (Path(__file__).parents[2] / "docs" / "discovery.md").read_text()
GROUPS = {example.name: written(example.groups) for example in EXAMPLES}


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


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
