"""Estimators of mutual information: each on its side of the truth, all in files."""

import information
import pytest
import torch
from densities import redraw
from marks import slow
from results_store import Store

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity


@pytest.fixture
def density():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    shapes = {"units": (4, 2)}
    group = pp.PermutationSymmetry({"hidden": {"units": 0}}, shapes=shapes).group
    locs = {"units": 0.1 * torch.randn(4, 2)}
    scales = {"units": torch.full((4, 2), 0.5)}
    return redraw(FactorizedDensity(group, locs, locs, scales, torch.Size()), 4000)


@pytest.mark.parametrize(
    ("estimate", "sides"),
    [
        *slow((information.nwj(24), (True, False))),
        (information.information(pp.InfoNCE(24)), (True, False)),
        (information.information(pp.LeaveOneOut(24)), (False, True)),
        (information.upper(pp.ImportanceSampled(8)), (True, True)),
    ],
)
def test_bounds_lie_on_their_side_and_near_the_truth_of_a_small_group(density, estimate, sides):
    scores = information.compare(density, estimate, information.reference(density))
    is_lower, is_upper = sides
    slack = 3 * scores["error"]
    assert scores["bias"] < (slack if is_lower and not is_upper else 0.3)
    assert scores["bias"] > (-slack if is_upper and not is_lower else -0.3)


def test_donsker_varadhan_is_near_the_truth_where_all_permutations_overlap(density):
    estimate = information.donsker_varadhan(200)
    scores = information.compare(density, estimate, information.reference(density))
    assert abs(scores["bias"]) < 0.05


def test_the_bethe_permanent_is_too_small_by_its_bias(density):
    found = information.bethe_without_correction(density) - information.reference(density)
    assert 0 < found.mean() < 2


def test_what_leaves_the_range_of_numbers_is_left_out(density):
    def estimate(density):
        return torch.full(density.batch_shape, -torch.inf)

    scores = information.compare(density, estimate, information.reference(density))
    assert scores["bias"] is None
    assert scores["reference"] > 0


@pytest.mark.slow
def test_the_script_writes_a_file_an_estimator(tmp_path):
    arguments = ["--results", str(tmp_path), "--widths", "3", "--steps", "3", "--draws", "32"]
    information.main(arguments)
    records = Store(tmp_path).records("information")
    assert len(records) == 2 * len(information.estimates())
