"""Write the page of results from the files of the benchmarks: `python docs/write_results.py`.

Every number of `docs/results.md` comes from a file below `benchmarks/results`, and so do the words
about wins, ties and losses. A test holds the page against the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from results_figures import draw_pruning  # noqa: E402
from results_sections import SECTIONS  # noqa: E402
from results_store import RESULTS, Store  # noqa: E402

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


if __name__ == "__main__":
    PAGE.write_text(page())
    draw_pruning(Store(RESULTS), ROOT / "docs" / "figures" / "pruning.png")
