"""A base guide of one's own is one reader, this one: Normals with one scale for all of a site."""

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from contracts.reader import EXAMPLES, ReaderContract
from problems import one_hidden_layer
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroParam, pyro_method
from torch.distributions import constraints

import pyro_perm as pp
from pyro_perm.density.base_guides import registry
from pyro_perm.density.base_guides.reader import Construction, Drawn, Kinds, Reader
from pyro_perm.training.choice import choose_elbo


class AutoIsotropic(AutoGuide):
    """Draws each site from a Normal whose scale is one for all entries. Sites are real vectors."""

    def __init__(self, model, *, start=0.3):
        super().__init__(model)
        self.start = start

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        for name, node in self.prototype_trace.iter_stochastic_nodes():
            loc = node["value"].detach()
            scale = loc.new_tensor(self.start)
            setattr(self, f"loc_{name}", PyroParam(loc, event_dim=loc.dim()))
            setattr(self, f"scale_{name}", PyroParam(scale, constraints.positive))

    @pyro_method
    def normals(self):
        names = (name for name, _ in self.prototype_trace.iter_stochastic_nodes())
        each = ((n, getattr(self, f"loc_{n}"), getattr(self, f"scale_{n}")) for n in names)
        return {name: (loc, scale.expand(loc.shape)) for name, loc, scale in each}

    def forward(self, *args, **kwargs):
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        result = {}
        for name, (loc, scale) in self.normals().items():
            normal = dist.Normal(loc, scale).to_event(loc.dim())
            drawn = pyro.sample(f"{name}_drawn", normal, infer={"is_auxiliary": True})
            value = self.passed_on(drawn)
            result[name] = pyro.sample(name, dist.Delta(value, event_dim=loc.dim()))
        return result

    def passed_on(self, drawn):
        return drawn


class Isotropic(Reader):
    """Reads it."""

    kinds: ClassVar[Kinds] = {AutoIsotropic: Construction(options=("start",))}

    def node_of(self, site, sites):
        node = f"{site}_drawn"
        return node if node in sites else None

    def read(self, site, node, sites, rank):
        normal = sites[node]["fn"].base_dist
        batch = (0,) * (normal.loc.dim() - rank)
        return Drawn(node, sites[node]["value"], normal.loc[batch], normal.scale[batch])

    def normals(self, guide):
        return guide.normals if type(guide) is AutoIsotropic else None


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "READERS", (Isotropic(), *registry.READERS))
    monkeypatch.setitem(EXAMPLES, AutoIsotropic, AutoIsotropic)


@pytest.mark.parametrize("kind", [AutoIsotropic])
class TestReader(ReaderContract):
    pass


def symmetrized(problem, **options):
    return pp.AutoSymmetrized(AutoIsotropic(problem.model, **options), problem.symmetry())


@pytest.mark.parametrize(
    "loss",
    [Trace_ELBO, pp.TraceSymmetrized_ELBO, pp.FunctionalSymmetrized_ELBO],
    ids=lambda loss: loss.__name__,
)
def test_it_trains_with_every_loss(loss):
    problem = one_hidden_layer(3)
    guide = symmetrized(problem)
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.05}), loss())
    assert all(math.isfinite(svi.step(*problem.args)) for _ in range(3))
    scales = {n: p for n, p in guide.base.named_parameters() if n.startswith("scale")}
    assert len(scales) == 4
    assert all(p.shape == () and p.exp().item() != guide.base.start for p in scales.values())


def test_a_loss_without_traces_is_that_of_the_same_normals():
    problem = one_hidden_layer(3)
    guide, twin = AutoIsotropic(problem.model, start=0.4), problem.base()
    guide(*problem.args)
    twin(*problem.args)
    with torch.no_grad():
        for name, (loc, _) in guide.normals().items():
            getattr(twin.locs, name).copy_(loc)
    losses = []
    for each in (guide, twin):
        loss = pp.FunctionalSymmetrized_ELBO(symmetry=problem.symmetry())
        loss.loss(problem.model, each, *problem.args)
        pyro.set_rng_seed(3)
        losses.append(loss.loss(problem.model, each, *problem.args))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_without_a_loss_it_is_trained_without_traces():
    problem = one_hidden_layer(3)
    for guide in (AutoIsotropic(problem.model), symmetrized(problem)):
        pyro.clear_param_store()
        kind = type(choose_elbo(problem.model, guide, (problem.args, {})))
        assert kind in (pp.FunctionalMeanField_ELBO, pp.FunctionalSymmetrized_ELBO)


def test_units_that_it_makes_in_different_ways_are_seen():
    """The density at permuted values is then another one than its reader reads."""

    class Graded(AutoIsotropic):
        def passed_on(self, drawn):
            return drawn * torch.arange(1.0, 1 + drawn.numel()).view(drawn.shape)

    problem = one_hidden_layer(3)
    guide = pp.AutoSymmetrized(Graded(problem.model), problem.symmetry())
    with pytest.raises(TypeError, match="each unit in its own way"):
        guide(*problem.args)


def test_it_is_evaluated():
    problem = one_hidden_layer(3)
    guide = symmetrized(problem)
    information = pp.mutual_information(guide, *problem.args, num_samples=20, progress=False)
    assert 0 < information.lower <= information.upper + 1e-9 < math.log(6) + 1
    found = pp.symmetrized_elbo(problem.model, guide, *problem.args, num_samples=20, progress=False)
    assert math.isfinite(found.lower)
    prediction = pp.predict(problem.model, guide, *problem.args, num_samples=5, progress=False)
    assert prediction.draws.isfinite().all()
    assert pp.wasserstein_distance(guide, guide.base) < 1e-12


@pytest.mark.parametrize("is_symmetrized", [True, False])
def test_it_is_saved_and_loaded(is_symmetrized, tmp_path):
    problem = one_hidden_layer(3)
    guide = symmetrized(problem, start=0.7)
    guide(*problem.args)
    guide = guide if is_symmetrized else guide.base
    pp.save(guide, tmp_path / "guide")
    pyro.clear_param_store()
    loaded = pp.load(problem.model, tmp_path / "guide")
    draws = []
    for each in (guide, loaded):
        pyro.set_rng_seed(2)
        draws.append(each(*problem.args))
    assert all(torch.equal(draws[0][site], draws[1][site]) for site in draws[0])
    assert (loaded.base if is_symmetrized else loaded).start == 0.7


def test_what_its_reader_leaves_out_is_refused(monkeypatch, tmp_path):
    problem = one_hidden_layer(3)
    guide = AutoIsotropic(problem.model)
    guide(*problem.args)
    pp.save(guide, tmp_path / "guide")
    monkeypatch.setattr(Isotropic, "kinds", {AutoIsotropic: None})
    with pytest.raises(TypeError, match=r"this is a AutoIsotropic: .* kinds of its reader"):
        pp.save(guide, tmp_path / "other")
    with pytest.raises(ValueError, match=r"no reader .* has a Construction for a AutoIsotropic"):
        pp.load(problem.model, tmp_path / "guide")
    monkeypatch.setattr(Isotropic, "normals", Reader.normals)
    with pytest.raises(TypeError, match=r"as AutoNormal does, .* the guide is a AutoIsotropic"):
        pp.FunctionalMeanField_ELBO().loss(problem.model, guide, *problem.args)
    with pytest.raises(TypeError, match="the distance is between guides that draw each site"):
        pp.wasserstein_distance(guide, guide, problem.symmetry())
