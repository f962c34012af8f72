"""What cannot be symmetrized is refused early, by name, with the reason."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import local_latents, normal, one_hidden_layer
from pyro.infer import SVI
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoHierarchicalNormalMessenger,
    AutoLaplaceApproximation,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.optim import Adam

import pyro_perm as pp

PROBLEM = one_hidden_layer()


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_messenger_guides(kind):
    base = kind(PROBLEM.model)
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*the likelihood would cancel"):
        pp.AutoSymmetrized(base, PROBLEM.symmetry())
    loss = pp.TraceSymmetrized_ELBO(symmetry=PROBLEM.symmetry())
    svi = SVI(PROBLEM.model, base, Adam({"lr": 0.01}), loss)
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*the likelihood would cancel"):
        svi.step(*PROBLEM.args)


@pytest.mark.parametrize("kind", [AutoDelta, AutoLaplaceApproximation])
def test_point_masses(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*point mass"):
        pp.AutoSymmetrized(kind(PROBLEM.model), PROBLEM.symmetry())


@pytest.mark.parametrize("base", [PROBLEM.model, None, torch.nn.Linear(2, 2)])
def test_what_is_no_guide(base):
    with pytest.raises(TypeError, match="base must be an autoguide such as AutoNormal"):
        pp.AutoSymmetrized(base, PROBLEM.symmetry())


def test_guides_symmetrized_already():
    with pytest.raises(TypeError, match="symmetrized already"):
        pp.AutoSymmetrized(PROBLEM.guide())


REFUSED = [
    (AutoStructured, "computes sites from each other"),
    (AutoGaussian, "rescales the vector that it draws"),
    (AutoDelta, "a point mass has no density"),
]


@pytest.mark.parametrize(("kind", "reason"), REFUSED)
def test_kinds_of_guides_are_refused_by_both_routes(kind, reason):
    message = rf"cannot symmetrize {kind.__name__}\w*: .*{reason}.*; use (?:AutoNormal|AutoMultiv)"
    with pytest.raises(TypeError, match=message):
        pp.AutoSymmetrized(kind(PROBLEM.model), PROBLEM.symmetry())
    loss = pp.TraceSymmetrized_ELBO(symmetry=PROBLEM.symmetry())
    with pytest.raises(TypeError, match=message):
        loss.loss(PROBLEM.model, kind(PROBLEM.model), *PROBLEM.args)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (AutoGaussian, "is a function of its part of the vector"),
        (AutoDelta, "is drawn from a Delta"),
    ],
)
def test_guides_in_a_function_name_the_site(kind, found):
    """A kind that is not known from outside is known by how it draws."""
    base = kind(PROBLEM.model)
    loss = pp.TraceSymmetrized_ELBO(symmetry=PROBLEM.symmetry())
    with pytest.raises(TypeError, match=f"site 'w1' {found} .* wrap an AutoNormal"):
        loss.loss(PROBLEM.model, lambda *args: base(*args), *PROBLEM.args)


def test_arguments_of_the_wrong_type():
    with pytest.raises(TypeError, match="symmetry must be a PermutationSymmetry or None"):
        pp.AutoSymmetrized(PROBLEM.base(), PROBLEM.spec)
    with pytest.raises(TypeError, match="estimator must be an Estimator such as Bethe"):
        pp.AutoSymmetrized(PROBLEM.base(), PROBLEM.symmetry(), estimator="Bethe")
    with pytest.raises(TypeError, match="symmetry must be a PermutationSymmetry or None"):
        pp.TraceSymmetrized_ELBO(symmetry=PROBLEM.spec)
    with pytest.raises(TypeError, match="estimator must be an Estimator such as Bethe"):
        pp.TraceSymmetrized_ELBO(estimator=pp.Bethe)


def scaled_prior(x, y):
    """The prior tells the units apart."""
    pyro.sample("w", dist.Normal(torch.zeros(3), torch.arange(1.0, 4.0)).to_event(1))


def two_sizes(x, y):
    normal("w", 3), normal("v", 4)


def in_subsampled_plate(x, y):
    with pyro.plate("units", 4, subsample_size=2):
        pyro.sample("w", dist.Normal(0.0, 1.0))


WRONG = {
    "unknown site": (PROBLEM.model, {"w9": 0}, r"'hidden'.*'w9'.*not a site"),
    "observed site": (PROBLEM.model, {"y": 0}, r"'hidden'.*'y'.*observed"),
    "axis out of range": (PROBLEM.model, {"b1": 1}, r"'hidden'.*'b1'.*out of range"),
    "two sizes": (two_sizes, {"w": 0, "v": 0}, r"'hidden'.*'w'.*'v'"),
    "forgotten site": (PROBLEM.model, {"w1": 0, "b1": 0}, r"'hidden'"),
    "wrong axis": (PROBLEM.model, {"w1": 1}, r"'hidden'.*'?w1'?"),
    "prior that tells units apart": (scaled_prior, {"w": 0}, r"'hidden'.*'?w'?"),
    "subsampled plate": (in_subsampled_plate, {"w": -1}, r"'w'.*subsampled plate 'units'"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("route", ["guide", "loss"])
def test_symmetries_that_do_not_fit_are_refused_at_the_first_call(route, wrong):
    model, sites, message = WRONG[wrong]
    symmetry = pp.PermutationSymmetry({"hidden": sites})
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    with pytest.raises(ValueError, match=message):
        if route == "guide":
            pp.AutoSymmetrized(base, symmetry)(*PROBLEM.args)
        else:
            loss = pp.TraceSymmetrized_ELBO(symmetry=symmetry)
            loss.loss(model, base, *PROBLEM.args)


def test_sites_of_the_subsampled_plate_itself():
    problem = local_latents()
    symmetry = pp.PermutationSymmetry({"hidden": {"shift": -1}})
    with pytest.raises(ValueError, match="'shift' lies in the subsampled plate 'data'"):
        pp.AutoSymmetrized(problem.base(), symmetry)(*problem.args)


def test_supports_that_a_permutation_does_not_permute_unconstrained():
    class Ordered(dist.MultivariateNormal):
        support = dist.constraints.ordered_vector

    def model():
        pyro.sample("p", Ordered(torch.zeros(3), torch.eye(3)))

    guide = pp.AutoSymmetrized(AutoNormal(model), pp.PermutationSymmetry({"ranks": {"p": 0}}))
    with pytest.raises(TypeError, match=r"'ranks', site 'p'.*Ordered.* is neither a product"):
        guide()


def test_models_without_symmetry():
    def model():
        pyro.sample("a", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        pyro.sample("b", dist.Normal(0.0, 2.0), obs=torch.tensor(0.5))

    message = r"found no permutation symmetry in the model(.|\n)*a\[-1\] is fixed: the model tells"
    with pytest.raises(ValueError, match=message):
        pp.AutoSymmetrized(AutoNormal(model))()
