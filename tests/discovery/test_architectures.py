"""Every architecture's full list of permuted axes."""

from __future__ import annotations

from typing import Any

import examples.graphs_and_spectra
import examples.networks
import examples.sequence_networks
import examples.statistical_models  # noqa: F401
import pytest
from examples.bayesian import EXAMPLES, LARGE, Example, groups_of, written
from marks import slow_where
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_perm.discovery import find_symmetry
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.verification import check_groups


def unpermuted_axes(symmetry: PermutationSymmetry, model: Any, args: Any) -> set[str]:
    """All axes of continuous latent sites that no group permutes."""
    permuted = {
        f"{site}[{axis.dim}]"
        for sites in symmetry.spec.values()
        for site, axes in sites.items()
        for axis in axes
    }
    return {
        f"{name}[{dim}]"
        for name, site in poutine.trace(model).get_trace(*args).iter_stochastic_nodes()
        if not site_is_subsample(site) and not site["infer"].get("enumerate")
        for dim in range(-site["value"].dim(), 0)
        if site["value"].shape[dim] > 1
    } - permuted


@pytest.mark.filterwarnings("ignore:dropout at .* draws a random mask:UserWarning")
@pytest.mark.parametrize(
    "example", slow_where(lambda e: e.name in LARGE, EXAMPLES), ids=lambda example: example.name
)
def test_every_axis_of_every_group_is_found(example: Example) -> None:
    model, *args = example.build()
    symmetry = find_symmetry(model, *args)
    assert groups_of(symmetry) == written(example.groups)
    assert bool(symmetry) == bool(example.groups)
    assert unpermuted_axes(symmetry, model, args) <= symmetry.reasons.keys()
    for check in check_groups(symmetry, model, *args):
        assert check.is_effective or check.control is None
