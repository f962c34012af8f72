"""The package's description is the README, whose links lead somewhere from an index, too."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="hatchling is not installed: make test installs it")
sys.path.insert(0, str(ROOT))
from hatch_build import CustomMetadataHook, absolute  # noqa: E402


def built(monkeypatch, **environment):
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    metadata = {}
    CustomMetadataHook(str(ROOT), {}).update(metadata)
    return metadata


def test_links_of_the_packaged_readme_are_absolute(monkeypatch):
    address = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "them/it"}
    metadata = built(monkeypatch, **address)
    text = metadata["readme"]["text"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    inside = [link for link in links if link.startswith("https://example.org/them/it/")]
    assert len(inside) > 8
    for link in inside:
        kind, _, path = link.removeprefix("https://example.org/them/it/").split("/", 2)
        assert (ROOT / path.partition("#")[0]).exists()
        assert (kind == "raw") == path.endswith(".png")
    assert metadata["urls"]["Repository"] == "https://example.org/them/it"


def test_without_a_repository_nothing_is_made_up(monkeypatch):
    metadata = built(monkeypatch)
    assert metadata["readme"]["text"] == (ROOT / "README.md").read_text()
    assert "urls" not in metadata


def test_other_links_and_labels_stay():
    text = "[a](https://b.c) [d](#e) [![f](g.png)](h.md#i) `[j](k)`"
    expected = "[a](https://b.c) [d](#e) [![f](R/raw/HEAD/g.png)](R/blob/HEAD/h.md#i)"
    assert absolute(text, "R").startswith(expected)
