"""A new guide that starts from what another one was trained to is told so; nobody else is."""

import copy
import io
import warnings

import pyro
import pytest
import torch
from problems import normal, one_hidden_layer, two_hidden_layers
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoNormal
from pyro.optim import Adam

import pyro_perm as pp

PROBLEM = one_hidden_layer()
SHARED = "starts from values that another guide was trained to"


def one_site(x, y):
    w = normal("w", 3)
    pyro.sample("y", pyro.distributions.Normal(w.tanh().sum(), 1.0), obs=torch.tensor(0.5))


def plain(kind=AutoNormal):
    return kind(PROBLEM.model, init_loc_fn=pp.init_to_fan_in)


def symmetrized(base=None):
    return pp.AutoSymmetrized(base or plain(), PROBLEM.symmetry())


def train(guide, loss=None):
    svi = SVI(PROBLEM.model, guide, Adam({"lr": 0.01}), loss or Trace_ELBO())
    svi.step(*PROBLEM.args)
    return guide


def as_list():
    guide = AutoGuideList(PROBLEM.model)
    guide.append(plain())
    return guide


KINDS = {
    "AutoNormal": plain,
    "AutoDiagonalNormal": lambda: plain(AutoDiagonalNormal),
    "AutoGuideList": as_list,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_loss", [True, False], ids=["loss", "guide"])
def test_a_fitted_guide_of_the_same_class_is_noticed(kind, by_loss):
    train(KINDS[kind]())
    with pytest.warns(UserWarning, match=rf"this {kind} {SHARED}.*clear_param_store"):
        if by_loss:
            train(KINDS[kind](), pp.TraceSymmetrized_ELBO(symmetry=PROBLEM.symmetry()))
        else:
            train(symmetrized(KINDS[kind]()))


def test_the_values_are_indeed_shared():
    first = train(plain())
    with pytest.warns(UserWarning, match=SHARED):
        second = train(symmetrized())
    torch.testing.assert_close(first.median(), second.median(), rtol=0, atol=0)


def test_a_second_symmetrized_guide_is_noticed():
    train(symmetrized())
    with pytest.warns(UserWarning, match=SHARED):
        train(symmetrized())


def after_clearing():
    train(plain())
    pyro.clear_param_store()
    return symmetrized()


def local_parameters():
    pyro.settings.set(module_local_params=True)
    train(plain())
    return symmetrized()


def local_parameters_from_now_on():
    train(plain())
    pyro.settings.set(module_local_params=True)
    return symmetrized()


def wrapped_after_training():
    return symmetrized(train(plain()))


def used_again():
    return train(symmetrized())


def copied():
    return copy.deepcopy(train(symmetrized()))


def pickled():
    buffer = io.BytesIO()
    torch.save(train(symmetrized()), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def from_a_saved_store():
    train(symmetrized())
    buffer = io.BytesIO()
    torch.save(pyro.get_param_store().get_state(), buffer)
    pyro.clear_param_store()
    buffer.seek(0)
    pyro.get_param_store().set_state(torch.load(buffer, weights_only=False))
    return symmetrized()


def another_model():
    problem = two_hidden_layers()
    other = AutoNormal(problem.model, init_loc_fn=pp.init_to_fan_in)
    SVI(problem.model, other, Adam({"lr": 0.01}), Trace_ELBO()).step(*problem.args)
    return pp.AutoSymmetrized(
        AutoNormal(one_site, init_loc_fn=pp.init_to_fan_in), pp.PermutationSymmetry({"u": {"w": 0}})
    )


UNSUSPICIOUS = [
    after_clearing,
    local_parameters,
    local_parameters_from_now_on,
    wrapped_after_training,
    used_again,
    copied,
    pickled,
    from_a_saved_store,
    another_model,
]


@pytest.mark.parametrize("made", UNSUSPICIOUS)
def test_what_is_meant_to_have_its_values_is_left_in_peace(made):
    guide = made()
    model = one_site if made is another_model else PROBLEM.model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (Trace_ELBO(), pp.TraceSymmetrized_ELBO()):
            SVI(model, guide, Adam({"lr": 0.01}), loss).step(*PROBLEM.args)
