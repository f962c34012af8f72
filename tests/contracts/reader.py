"""What every reader of base guides keeps: a new kind of guide is a line in ``EXAMPLES``."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_coupling
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)

import pyro_perm as pp
from pyro_perm.density.base_guides import base_node, read_density, registry, require_density

SHAPES = {"w": (3,), "v": (2, 3), "rest": (2,)}
SYMMETRY = pp.PermutationSymmetry({"units": {"w": 0, "v": 1}}, shapes=SHAPES)
EXAMPLES = {
    AutoNormal: AutoNormal,
    AutoDiagonalNormal: AutoDiagonalNormal,
    AutoMultivariateNormal: AutoMultivariateNormal,
    AutoLowRankMultivariateNormal: AutoLowRankMultivariateNormal,
    AutoNormalizingFlow: partial(
        AutoNormalizingFlow, init_transform_fn=partial(affine_coupling, hidden_dims=[8])
    ),
}


def model():
    """Sites of which two have the same units."""
    for site, shape in SHAPES.items():
        pyro.sample(site, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))


def drawn(kind):
    """Trace nodes of a guide whose parameters are random, run with several particles."""
    guide = EXAMPLES[kind](model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with poutine.trace() as tracer, pyro.plate("particles", 4):
        guide()
    return tracer.trace.nodes


class ReaderContract:
    """Inherited by the tests of all readers, each ``kind`` a guide that one of them reads."""

    def test_its_own_reader_answers_first(self, kind):
        nodes = drawn(kind)
        for site in SYMMETRY.group.sites:
            reader = next(r for r in registry.READERS if r.node_of(site, nodes) is not None)
            assert kind in reader.kinds
            assert base_node(site, nodes) == reader.node_of(site, nodes)
            require_density(site, nodes)

    def test_the_density_is_that_of_the_guide_at_permuted_values(self, kind):
        nodes, symmetry = drawn(kind), SYMMETRY.group
        density = read_density(nodes, symmetry)
        assert density.batch_shape == (4,)
        for site in symmetry.sites:
            assert torch.equal(density.values[site], nodes[site]["value"])
        permutations = symmetry.sample((5, 4))
        values = {site: nodes[site]["value"] for site in SHAPES}
        before, after = (
            log_prob(nodes, each) for each in (values, symmetry.apply(permutations, values))
        )
        found = density.log_ratio(permutations)
        torch.testing.assert_close(found, after - before, rtol=0, atol=1e-9)
        assert found.abs().max() > 0.1

    def test_fixed_draws_leave_gradients_to_the_parameters(self, kind):
        nodes, symmetry = drawn(kind), SYMMETRY.group
        density = read_density(nodes, symmetry)
        assert density.draws_require_grad
        fixed = density.with_fixed_draws()
        assert not fixed.draws_require_grad
        assert fixed.log_ratio(symmetry.sample((1, 4))).requires_grad


def log_prob(nodes, values):
    """The log-density of values by the guide's own distributions, shape ``(*batch)``."""
    names = {base_node(site, nodes) for site in SYMMETRY.group.sites}
    if len(names) == 1:
        flat = [values[site].flatten(-len(shape)) for site, shape in SHAPES.items()]
        batch = flat[0].shape[:-1]
        vector = torch.cat([part.expand(*batch, -1) for part in flat], -1)
        return nodes[names.pop()]["fn"].log_prob(vector)
    return sum(
        nodes[base_node(site, nodes)]["fn"].log_prob(values[site]) for site in SYMMETRY.group.sites
    )
