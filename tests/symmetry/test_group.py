"""The group on one model's sites: a value, whatever spec, model or process it comes from."""

import copy
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import on_each
from problems import PROBLEMS, SIGNED_PROBLEMS, one_hidden_layer, two_hidden_layers
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

import pyro_perm as pp
from pyro_perm.symmetry.binding import SiteShape
from pyro_perm.symmetry.group import SymmetryGroup
from pyro_perm.symmetry.separable import separable_sites


def bind(problem):
    return problem.symmetry().bind(poutine.trace(problem.model).get_trace(*problem.args))


@on_each([*PROBLEMS, *SIGNED_PROBLEMS])
def test_a_group_is_its_value(problem):
    group = bind(problem)
    others = [bind(problem), copy.deepcopy(group), pickle.loads(pickle.dumps(group))]
    for other in others:
        assert other == group and hash(other) == hash(group)
        assert other.spec == group.spec and other.groups == group.groups
        assert other.log_order == group.log_order
    assert len({group, *others}) == 1


def test_groups_of_other_sizes_signs_supports_and_order_differ():
    spec = {"first": {"w1": 0, "w2": 1}, "second": {"w2": 0}}
    shapes = {"w1": (3, 2), "w2": (4, 3)}

    def group(spec, shapes, **kwargs):
        shapes = {site: SiteShape(shape, 2, **kwargs) for site, shape in shapes.items()}
        return pp.PermutationSymmetry(spec)._settle(shapes)

    signed = spec | {"second": {"w2": pp.Axis(0, sign=True)}}
    groups = [
        group(spec, shapes),
        group(spec, shapes | {"w2": (5, 3)}),
        group(spec, shapes, is_simplex=True),
        group(signed, shapes),
        group(dict(reversed(spec.items())), shapes),
    ]
    assert len(set(groups)) == len(groups)


def test_specs_are_equal_where_their_axes_are():
    problem = one_hidden_layer()
    symmetry, other = problem.symmetry(), problem.symmetry()
    other.verify(problem.model, *problem.args)
    assert symmetry == other and hash(symmetry) == hash(other)
    backwards = {group: dict(reversed(sites.items())) for group, sites in symmetry.spec.items()}
    same = pp.PermutationSymmetry(backwards)
    assert symmetry == same and hash(symmetry) == hash(same)
    assert symmetry != two_hidden_layers().symmetry()
    assert symmetry.subset() == symmetry and symmetry != {"hidden": {"w1": 0}}


def test_one_spec_serves_several_widths():
    pyro.settings.set(module_local_params=True)  # The guides' parameters have the same names.
    narrow, wide = one_hidden_layer(4), one_hidden_layer(6)
    symmetry = narrow.symmetry()
    guides = [pp.AutoSymmetrized(p.base(), symmetry) for p in (narrow, wide)]
    for guide, problem in zip(guides, (narrow, wide), strict=True):
        guide(*problem.args)
        assert symmetry.groups == guide.symmetry.groups
    assert [guide.symmetry.groups["hidden"] for guide in guides] == [4, 6]
    for guide, problem in zip(guides, (narrow, wide), strict=True):
        SVI(problem.model, guide, Adam({"lr": 0.01}), Trace_ELBO()).step(*problem.args)
        assert guide.symmetry == symmetry
        # That of a guide is held to the guide's model.
        other = wide if problem is narrow else narrow
        with pytest.raises(ValueError, match="a PermutationSymmetry for each model"):
            guide.symmetry.verify(other.model, *other.args)


def test_nothing_keeps_a_model_alive():
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=torch.tensor(0.0))

    symmetry = pp.PermutationSymmetry({"units": {"w": 0}})
    guide = pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in), symmetry)
    Trace_ELBO().loss(model, guide)
    alive = weakref.ref(model), weakref.ref(guide)
    pyro.clear_param_store()
    del model, guide
    gc.collect()
    assert [each() for each in alive] == [None, None]


def test_what_is_remembered_is_shared_by_equal_groups():
    one, other = bind(two_hidden_layers()), bind(two_hidden_layers())
    assert one is not other
    assert separable_sites(one, "first") is separable_sites(other, "first")


def test_all_axes_of_a_group_permute_or_none():
    axes = {"w1": 0, "w2": pp.Axis(1, permute=False)}
    message = r"group 'hidden' permutes .* axis 0 of site 'w1', but not along axis .*'w2'.*permute="
    with pytest.raises(ValueError, match=message):
        pp.PermutationSymmetry({"hidden": axes})
    with pytest.raises(ValueError, match=message):
        pp.PermutationSymmetry({"hidden": dict(reversed(axes.items()))})


def test_a_group_cannot_be_changed():
    group = bind(one_hidden_layer())
    assert isinstance(group, SymmetryGroup)
    with pytest.raises(AttributeError):
        group.factors = ()
    with pytest.raises(TypeError):
        group.spec["hidden"] = {}
    with pytest.raises(TypeError):
        group.groups["hidden"] = 3
