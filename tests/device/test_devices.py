"""What runs on the CPU runs on an accelerator, stays there, and gives the same numbers."""

import math

import pyro
import pytest
import torch
from densities import two_layers
from problems import one_hidden_layer, two_hidden_layers, with_signs
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity

pytestmark = pytest.mark.device

BOTH_SIDES = [
    pp.ImportanceSampled(16),
    pp.SampledChainRule(16),
    pp.AnnealedImportanceSampled(10, 2),
]


def on(device, density):
    """The density, with leaves of its own on a device."""
    values, locs, scales = (
        {site: tensor.detach().to(device).requires_grad_() for site, tensor in kind.items()}
        for kind in (density.values, density.locs, density.scales)
    )
    return FactorizedDensity(density.symmetry, values, locs, scales, density.batch_shape)


def leaves(density):
    return [t for kind in (density.values, density.locs, density.scales) for t in kind.values()]


@pytest.mark.parametrize("permute", [True, False], ids=["permuted", "in place"])
@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=str)
def test_signs_flip_on_the_device(device, estimator, permute):
    spec = {
        "units": {
            "w": pp.Axis(0, sign=True, permute=permute),
            "v": pp.Axis(1, index=(0, 2, 3), permute=permute),
        }
    }
    shapes = {"w": (3, 2), "v": (2, 4)}
    group = pp.PermutationSymmetry(spec, shapes=shapes).group
    kinds = [{site: torch.rand(shape) + 0.5 for site, shape in shapes.items()} for _ in range(3)]
    density = FactorizedDensity(group, *kinds, torch.Size())
    here, there = on(torch.device("cpu"), density), on(device, density)
    expected, found = estimator.log_ratio(here), estimator.log_ratio(there)
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected)
    for one, other in zip(
        torch.autograd.grad(found, leaves(there)),
        torch.autograd.grad(expected, leaves(here)),
        strict=True,
    ):
        torch.testing.assert_close(one.cpu(), other)
    element = group.sample((4,), device=device)
    moved = group.apply(element, there.values)
    assert all(value.device.type == device.type for value in moved.values())


def test_a_guide_draws_its_permutations_on_the_device(device):
    problem = with_signs(one_hidden_layer(3))
    args, guide = tuple(arg.to(device) for arg in problem.args), problem.guide()
    with device:
        guide(*args)
    nodes = poutine.trace(guide).get_trace(*args).nodes
    (site,) = (name for name in nodes if name.startswith("hidden_permutation"))
    assert nodes[site]["value"].device == nodes["w1"]["value"].device


@pytest.mark.parametrize("estimator", [pp.Exact(), pp.Bethe()], ids=str)
@pytest.mark.parametrize("loc_scale", [0.4, 3.0], ids=["overlapping", "apart"])
def test_log_ratios_and_gradients_are_those_of_the_cpu(device, estimator, loc_scale):
    density = two_layers(4, 3, loc_scale, 5)
    found, expected = [], []
    for where, results in ((device, found), (torch.device("cpu"), expected)):
        moved = on(where, density)
        log_ratio = estimator.log_ratio(moved)
        assert log_ratio.device.type == where.type
        gradients = torch.autograd.grad(log_ratio.sum(), leaves(moved), allow_unused=True)
        results += [log_ratio, *(g for g in gradients if g is not None)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", BOTH_SIDES, ids=str)
def test_bounds_lie_on_their_sides_of_exact(device, estimator):
    density = on(device, two_layers(4, 3, 0.4, 200))
    exact = -pp.Exact().log_ratio(density)
    bounds = estimator.bounds(density)
    for gap in (exact - bounds.lower, bounds.upper - exact):
        assert gap.device.type == device.type
        assert gap.mean() >= -4 * gap.std() / 200**0.5


@pytest.mark.parametrize(("units", "loc_scale"), [(20, 0.2), (300, 3.0)], ids=["Bethe", "screen"])
def test_wide_layers_are_those_of_the_cpu(device, units, loc_scale):
    density = two_layers(units, 20, loc_scale, 2)
    on_device, on_cpu = (pp.Bethe().log_ratio(on(d, density)) for d in (device, "cpu"))
    torch.testing.assert_close(on_device.cpu(), on_cpu, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO, pp.FunctionalSymmetrized_ELBO]
)
@pytest.mark.parametrize("moves", [False, True], ids=["born there", "moved there"])
@pytest.mark.parametrize("problem", [one_hidden_layer(6), two_hidden_layers(4, 12)], ids=str)
def test_guides_train_where_their_parameters_are(device, problem, moves, loss):
    args = tuple(tensor.to(device) for tensor in problem.args)
    guide = problem.guide()
    if moves:
        guide(*problem.args)
        guide.to(device)
        pyro.clear_param_store()
    with device if not moves else torch.device("cpu"):
        svi = SVI(_on(device, problem.model), guide, Adam({"lr": 0.01}), loss())
        losses = [svi.step(*args) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    assert {parameter.device.type for parameter in guide.parameters()} == {device.type}
    assert poutine.trace(guide).get_trace(*args).log_prob_sum().device.type == device.type


def _on(device, model):
    """The problem's model, whose priors are made on the device."""

    def moved(*args):
        with device:
            return model(*args)

    return moved


def test_symmetries_are_found_and_verified_there(device):
    problem = two_hidden_layers()
    args = tuple(tensor.to(device) for tensor in problem.args)
    found = pp.find_symmetry(_on(device, problem.model), *args)
    assert found.groups == {"P0": 3, "P1": 4}
    wrong = pp.PermutationSymmetry({"first": {"w1": 0, "w2": 1}})
    with pytest.raises(pp.SymmetryVerificationError):
        wrong.verify(_on(device, problem.model), *args)


@pytest.mark.parametrize("joint", [False, True])
def test_what_comes_after_training_runs_there(device, joint):
    problem = one_hidden_layer(4)
    model, args = _on(device, problem.model), tuple(t.to(device) for t in problem.args)
    base = AutoMultivariateNormal(model, init_loc_fn=pp.init_to_fan_in) if joint else None
    with device:
        guide = (
            pp.AutoSymmetrized(base, problem.symmetry(), estimator=pp.ImportanceSampled(4))
            if joint
            else problem.guide()
        )
        options = {"num_samples": 8, "progress": False}
        elbo = pp.symmetrized_elbo(model, guide, *args, **options)
        assert elbo.lower <= elbo.upper + 1e-6
        data = pp.to_arviz(model, guide, *args, **options)
        assert data["posterior"]["w1"].shape == (1, 8, 4, 2)
        prediction = pp.predict(model, guide, *args, **options)
        assert prediction.log_predictive_density.device.type == device.type
        values = {
            site: torch.randn(5, *guide.symmetry.site_shape(site)) for site in ("w1", "b1", "w2")
        }
        aligned = pp.align(values, guide.symmetry)
        assert aligned.samples["w1"].device.type == device.type
