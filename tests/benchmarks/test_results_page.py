"""The page of results is what its script makes of the files."""

import sys
from pathlib import Path

import pytest
from results_store import Mean, Run, Store

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import write_results
from results_tables import paired, verdict
from results_uci import moved

README = Path(__file__).parents[2] / "README.md"
ROWS = ("| yacht |", "| energy |", "| concrete |", "| wine-red |")


def test_the_pages_are_up_to_date():
    for path, page in (
        (write_results.PAGE, write_results.page()),
        (write_results.NETWORKS, write_results.page_of_networks()),
    ):
        assert path.read_text() == page, "python docs/write_results.py"


def scores(log_likelihood, bound):
    kinds = ("mean field", "permutations", "scales", "permutations and scales")
    return {
        "log_likelihood": log_likelihood,
        "rmse": -log_likelihood,
        "bounds": {kind: {"mean": bound, "error": 0.1} for kind in kinds},
        "active_units": 7,
        "seconds": 2.0,
        "trajectory": [bound - 1.0] * 10 + [bound] * 10,
    }


def test_numbers_and_verdicts_come_from_the_files(tmp_path):
    store = Store(tmp_path)
    chosen = {"prior_scale": 1.0, "learning_rate": 0.01}
    store.save(Run("uci", "yacht", "selection", 0), {"num_steps": 10}, chosen)
    for seed in range(4):
        run = Run("uci", "yacht", "mean field", seed)
        store.save(run, {}, scores(-2.0 - 0.01 * seed, 10.0))
        store.save(Run("uci", "yacht", "permutations and scales", seed), {}, scores(-1.5, 31.25))
    page = write_results.page(tmp_path)
    assert "| permutations and scales | 4 | -1.500 ± 0.000 |" in page
    assert "0.515 ± 0.006, wins" in page
    assert "-0.515 ± 0.006, wins" in page  # RMSE: less is better.
    assert "wins on yacht (4 splits)" in page
    assert "21.2 ± 0.0" in page  # The gain in the bound.


@pytest.mark.parametrize(
    ("mean", "error", "num", "expected"),
    [
        (1.0, 0.4, 20, "wins"),
        (1.0, 0.6, 20, "ties"),
        (-1.0, 0.4, 20, "loses"),
        (1.0, 0.4, 5, "ties"),
        (1.0, 0.1, 2, "ties"),
    ],
)
def test_two_standard_errors_decide_unless_runs_are_few(mean, error, num, expected):
    assert verdict(Mean(mean, error, num)) == expected


def test_pairs_are_those_of_the_same_seed():
    def runs(*seeds):
        return {seed: {"x": float(seed)} for seed in seeds}

    assert paired(runs(1, 2, 3), runs(2, 3, 4), lambda record: record["x"]) == Mean(0.0, 0.0, 2)
    assert paired(runs(1), runs(2), lambda record: record["x"]) is None


def test_what_moved_is_the_change_over_the_last_tenth():
    assert moved([0.0] * 16 + [1.0, 3.0, 4.0, 6.0]) == 5.0 - 2.0


def test_the_readme_takes_its_figures_from_the_page():
    rows = [line for line in README.read_text().splitlines() if line.startswith(ROWS)]
    assert len(rows) == len(ROWS)
    for row in rows:
        name, *figures = (cell.strip() for cell in row.strip("| ").split("|"))
        section = write_results.PAGE.read_text().split(f"### {name}\n")[1].split("\n### ")[0]
        assert len(figures) == 6 and all(figure in section for figure in figures)
