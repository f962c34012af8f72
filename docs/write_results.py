"""Write what pages say of the benchmarks from their files: `python docs/write_results.py`.

Every number of `docs/results.md` comes from a file below `benchmarks/results`, and so do the words
about wins, ties and losses; so does the last section of `docs/modules.md`. A test holds the pages
against the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
NETWORKS = ROOT / "docs" / "modules.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from results_figures import draw_pruning  # noqa: E402
from results_networks import coverage  # noqa: E402
from results_sections import SECTIONS  # noqa: E402
from results_store import RESULTS, Store  # noqa: E402

COVERAGE = "\n## Coverage\n\n"
TITLE = """# Results

What the methods do on the field's common tables: wins, ties and losses alike. This page is written
by `python docs/write_results.py` from one file a run in `benchmarks/results`, where settings, seeds
and versions stand; the command that makes them is above each table. Log-likelihoods and bounds are
in nats; ± is one standard error. "Wins" and "loses" mean a paired difference of more than two
standard errors, or than Student's t at .95 allows where runs are few, and "ties" anything else.
"""


def page(root: Path = RESULTS) -> str:
    """The page, from the files below a folder."""
    store = Store(root)
    parts = [TITLE, *(section(store) for section in SECTIONS)]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def page_of_networks(root: Path = RESULTS) -> str:
    """The page on networks, with what is found in them as its last section."""
    written = NETWORKS.read_text().partition(COVERAGE)[0]
    return f"{written}{COVERAGE}{coverage(Store(root))}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    NETWORKS.write_text(page_of_networks())
    draw_pruning(Store(RESULTS), ROOT / "docs" / "figures" / "pruning.png")
