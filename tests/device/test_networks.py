"""Networks of torch.nn are trained, saved, evaluated and aligned on an accelerator."""

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from rescaled_networks import Network, X, Y
from torch import nn

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity
from pyro_perm.rescaling import Degrees, UnitEntries, log_orbit_mass, orbit_pairs

pytestmark = pytest.mark.device

OPTIONS = {"num_samples": 8, "progress": False}


class ConvNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)),
        )


@pytest.fixture
def classifier(device):
    """A Bayesian network with its data and its symmetrized guide."""
    torch.manual_seed(0)
    x = torch.randn(40, 1, 6, 6).to(device)
    y = (x.mean((1, 2, 3)) > 0).long()
    net = ConvNet().to(device).eval()
    pyro.settings.set(module_local_params=True)
    yield pp.bayesian(net, likelihood=pp.likelihoods.categorical, dataset_size=40), (x, y)
    pyro.settings.set(module_local_params=False)


def symmetrized(model, permute=True):
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.05)
    return pp.AutoSymmetrized(base, permute=permute)


def devices_of(tensors):
    return {tensor.device.type for tensor in tensors}


def test_a_network_trains_and_resumes(device, classifier, tmp_path):
    model, data = classifier

    def run(steps, checkpoint=None):
        pyro.set_rng_seed(0)
        guide = symmetrized(model)
        return guide, pp.fit(
            *(model, guide, data),
            batch_size=16,
            steps=steps,
            kl_weight=pp.linear_warm_up(4),
            checkpoint=checkpoint,
            progress=False,
        )

    guide, history = run(8)
    assert devices_of(guide.parameters()) == {device.type}
    assert all(map(math.isfinite, history.losses))
    run(5, tmp_path / "run.pt")
    resumed, later = run(8, tmp_path / "run.pt")
    assert later.losses == pytest.approx(history.losses, rel=1e-5)
    for one, other in zip(guide.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: pp.LocalReparametrization(pp.TraceSymmetrized_ELBO()),
        lambda: pp.StickingTheLanding(Trace_ELBO()),
        lambda: pp.TraceSymmetrized_ELBO(num_particles=3, vectorize_particles=True),
        lambda: pp.FunctionalSymmetrized_ELBO(num_particles=3),
        Trace_ELBO,
    ],
)
def test_recipes_serve(classifier, recipe):
    model, data = classifier
    guide = symmetrized(model, permute=False)
    history = pp.fit(model, guide, data, steps=3, elbo=recipe(), progress=False)
    assert all(map(math.isfinite, history.losses))


def test_a_guide_is_saved_and_predicts_alike(device, classifier, tmp_path):
    model, (x, y) = classifier
    guide = symmetrized(model)
    pp.fit(model, guide, (x, y), steps=3, progress=False)
    pp.save(guide, tmp_path / "guide.safetensors")
    loaded = pp.load(model, tmp_path / "guide.safetensors").to(device)
    assert devices_of(loaded.parameters()) == {device.type}
    found = []
    for each in (guide, loaded):
        pyro.set_rng_seed(1)
        found.append(pp.predict(model, each, x, **OPTIONS).mean)
    assert found[0].device.type == device.type
    torch.testing.assert_close(*found)


def test_evaluation_stays_there(device, classifier):
    model, data = classifier
    guide, plain = symmetrized(model), AutoNormal(model, init_scale=0.05)
    for each in (guide, plain):
        pp.fit(model, each, data, steps=3, progress=False)
    elbo = pp.symmetrized_elbo(model, guide, *data, **OPTIONS)
    information = pp.mutual_information(guide, *data, **OPTIONS)
    assert elbo.lower <= elbo.upper + 1e-6
    assert information.lower <= information.upper + 1e-6
    table = pp.compare(model, {"plain": plain, "symmetrized": guide}, *data, **OPTIONS)
    assert "symmetrized" in str(table)
    draws = guide.sample_posterior(4, *data)
    assert devices_of(draws.values.values()) == {device.type}
    assert pp.to_arviz(model, guide, *data, **OPTIONS)["posterior"].sizes["draw"] == 8


def test_laplace_and_other_peoples_gaussians_stay_there(device, classifier):
    model, data = classifier
    net = model.network
    scales = {name: (p.detach(), torch.full_like(p, 0.1)) for name, p in net.named_parameters()}
    posterior = pp.gaussian_posterior(
        net, scales, likelihood=pp.likelihoods.categorical, dataset_size=40
    )
    information = pp.mutual_information(posterior.guide, *data, **OPTIONS)
    assert information.lower <= information.upper + 1e-6
    prediction = pp.predict(posterior.model, posterior.guide, data[0], **OPTIONS)
    assert prediction.mean.device.type == device.type


def test_plain_networks_are_moved_and_aligned(device):
    torch.manual_seed(0)
    nets = [ConvNet().double().to(device).eval() for _ in range(3)]
    x = torch.randn(8, 1, 6, 6, dtype=torch.float64).to(device)
    symmetry = pp.find_symmetry(nets[0], x)
    on_cpu = pp.find_symmetry(copy.deepcopy(nets[0]).cpu(), x.cpu())
    assert symmetry.groups == on_cpu.groups == {"P0": 4, "P1": 5}
    states = [net.state_dict() for net in nets]
    before = nets[0](x)
    moved = symmetry.apply(symmetry.sample(), states[0])
    assert devices_of(moved.values()) == {device.type}
    nets[0].load_state_dict(moved)
    torch.testing.assert_close(nets[0](x), before)
    aligned = pp.align(states, symmetry)
    expected = pp.align([{k: v.cpu() for k, v in s.items()} for s in states], symmetry)
    for one, other in zip(aligned.state_dicts, expected.state_dicts, strict=True):
        assert devices_of(one.values()) == {device.type}
        for name, value in one.items():
            torch.testing.assert_close(value.cpu(), other[name])
    ordered = pp.canonical_order(states[1], symmetry)
    assert devices_of(ordered.values()) == {device.type}


def test_integrals_along_orbits_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    value, loc = torch.randn(2, 6, 5, dtype=torch.float64)
    kinds = value, loc, torch.rand(6, 5, dtype=torch.float64) + 0.2
    degrees = Degrees.of([1, 1, 1, -1, -1])
    here, there = (UnitEntries(*(kind.to(d) for kind in kinds)) for d in ("cpu", device))
    mass = log_orbit_mass(there, degrees)
    assert mass.device.type == device.type
    torch.testing.assert_close(mass.cpu(), log_orbit_mass(here, degrees))
    found, expected = (orbit_pairs(each, degrees) for each in (there, here))
    torch.testing.assert_close(found.log_densities.cpu(), expected.log_densities)
    weights = torch.rand(6, 6, dtype=torch.float64)
    for one, other in zip(
        found.gradients(weights.to(device)), expected.gradients(weights), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.parametrize("permute", [True, False], ids=["permuted", "in place"])
@pytest.mark.parametrize(
    "loss", [Trace_ELBO, pp.TraceSymmetrized_ELBO, pp.FunctionalSymmetrized_ELBO]
)
def test_units_rescale_there(device, loss, permute):
    network = Network(3)

    def model(x, y):
        with device:
            return network(x, y)

    args = X.to(device), Y.to(device)
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in, init_scale=0.4)
    guide = pp.AutoSymmetrized(base, network.symmetry, permute=permute)
    history = pp.fit(model, guide, args, steps=3, elbo=loss(), progress=False)
    assert all(map(math.isfinite, history.losses))
    assert devices_of(guide.parameters()) == {device.type}
    elbo = pp.symmetrized_elbo(model, guide, *args, **OPTIONS)
    assert elbo.lower <= elbo.upper + 1e-6
    draws = guide.sample_posterior(4, *args)
    assert devices_of(draws.values.values()) == {device.type}
    evidence = pp.log_evidence(model, *args, num_particles=4, num_temperatures=5, progress=False)
    assert math.isfinite(evidence.log_evidence)


def test_a_density_says_where_it_is(device):
    group = pp.PermutationSymmetry({"units": {"w": 0}}, shapes={"w": (300, 4)}).group
    kinds = ({"w": torch.rand(300, 4).to(device) + 0.1} for _ in range(3))
    density = FactorizedDensity(group, *kinds, torch.Size())
    for estimator in (pp.Bethe(), pp.InfoNCE(4), pp.LeaveOneOut(4), pp.SampledChainRule(4)):
        assert estimator.log_ratio(density).device.type == device.type
