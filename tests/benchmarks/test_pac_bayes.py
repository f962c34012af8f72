"""The PAC-Bayes bound: its inversion, its exact divergences, and a smoke run."""

import math
from dataclasses import replace

import pac_bayes
import pytest
import torch
from results_store import Store
from stacked_network import Layout
from stacked_objectives import METHODS, Posteriors, exact


def test_the_inverse_solves_the_equation():
    error = torch.tensor([0.0, 0.05, 0.3, 1.0], dtype=torch.float64)
    budget = torch.full_like(error, 0.1)
    risk = pac_bayes.inverse_kl(error, budget)
    torch.testing.assert_close(pac_bayes.binary_kl(error, risk)[:3], budget[:3], rtol=1e-6, atol=0)
    assert risk[0] == pytest.approx(1 - math.exp(-0.1))
    assert risk[3] == 1.0


def test_a_smaller_divergence_certifies_a_smaller_risk():
    error, ratio = torch.tensor([0.1]), torch.tensor([200.0, 100.0], dtype=torch.float64)
    risks = pac_bayes.certified_risk(error.expand(2), ratio, 1000)
    assert risks[1] < risks[0] < 1


def posteriors(num=2000):
    torch.set_default_dtype(torch.float64)
    layout, source = Layout(3, 4, num_classes=2), torch.Generator().manual_seed(0)
    loc = layout.initial(source).expand(num, -1)
    scale = torch.full_like(loc, 0.3)
    value = loc + scale * torch.randn(loc.shape, generator=source)
    return Posteriors(layout, value, loc, scale, layout.prior_scale(torch.ones(num)))


def test_exact_ratios_have_the_divergences_that_methods_minimize():
    q = posteriors()
    found = exact(q)
    for kind, log_ratio in found.items():
        difference = log_ratio + METHODS[kind]()(q)
        error = difference.std().item() / len(difference) ** 0.5
        assert abs(difference.mean().item()) < 4 * error + 1e-3


def test_ratios_are_those_of_the_permuted_and_rescaled_network():
    q = posteriors(5)
    units = q.layout.units(q.value)[:, torch.randperm(4)]
    units = q.degrees.rescale(units, torch.randn(5, 4))
    others = q.value[:, -q.layout.num_others :]
    moved = exact(replace(q, value=torch.cat([units.flatten(1), others], -1)))
    kind = "permutations and scales"
    torch.testing.assert_close(moved[kind], exact(q)[kind], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_script_writes_its_files(tmp_path):
    arguments = ["--results", str(tmp_path), "--steps", "2", "--draws", "2", "--units", "3"]
    pac_bayes.main([*arguments, "--seeds", "2"])
    records = Store(tmp_path).records("pac-bayes")
    assert len(records) == 2 * 3 * 2
    scores = records[0]["scores"]
    assert 0 < scores["error"] < scores["certified risk, permutations"] <= 1
