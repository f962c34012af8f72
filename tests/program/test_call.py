"""What a program is called with, and which keywords are whose."""

import functools
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule

import pyro_perm as pp
from pyro_perm.program.call import Call, refuse_shared_keywords, signature_of

Y = torch.zeros(4)


def model(y, seed=0.0, *, site=0.0, progress=0.0, num_samples=0.0, signs=0.0):
    mean = seed + site + progress + num_samples + signs
    w = pyro.sample("w", dist.Normal(torch.full((2,), 1.0 * mean), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)


class Network(PyroModule):
    def forward(self, y, seed=0.0, *, site=0.0, progress=0.0, num_samples=0.0, signs=0.0):
        model(y, seed, site=site, progress=progress, num_samples=num_samples, signs=signs)


HANDLED = [
    model,
    Network(),
    poutine.scale(model, scale=2.0),
    poutine.scale(Network(), scale=2.0),
    poutine.reparam(model, config={"v": LocScaleReparam()}),
    poutine.block(poutine.scale(Network(), scale=2.0), hide=["v"]),
    functools.partial(model),
    functools.partial(Network()),
]


def guide_of(program):
    guide = AutoNormal(program)
    guide(Y)
    return guide


SYMMETRY = pp.PermutationSymmetry({"units": {"w": 0}})
QUIET = {"progress": False}

CALLS = {
    "predict": (lambda m, *a, **k: pp.predict(m, guide_of(model), *a, **k), "site", "y"),
    "to_arviz": (lambda m, *a, **k: pp.to_arviz(m, guide_of(model), *a, **k), "seed", 3),
    "symmetrized_elbo": (
        lambda m, *a, **k: pp.symmetrized_elbo(m, guide_of(model), *a, symmetry=SYMMETRY, **k),
        "num_samples",
        4,
    ),
    "mutual_information": (
        lambda m, *a, **k: pp.mutual_information(guide_of(m), *a, symmetry=SYMMETRY, **k),
        "num_samples",
        4,
    ),
    "unit_overlap": (
        lambda m, *a, **k: pp.unit_overlap(guide_of(m), *a, symmetry=SYMMETRY, **k),
        "num_samples",
        4,
    ),
    "log_evidence": (pp.log_evidence, "progress", False),
    "find_symmetry": (pp.find_symmetry, "signs", False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_keyword_of_both_is_refused_with_the_form_that_passes_both(name):
    call, keyword, value = CALLS[name]
    message = rf"{name} and the program both have .* '{keyword}'.*partial\(program, {keyword}="
    with pytest.raises(ValueError, match=message):
        call(model, Y, **{keyword: value})


BOUNDS, ARVIZ = ("symmetrized_elbo", "mutual_information", "unit_overlap"), "to_arviz"


def plain(y):
    model(y)


MISSPELLED = [
    *(
        (name, "seed", ": call pyro.set_rng_seed(seed) before")
        for name in sorted(CALLS.keys() - {ARVIZ})
    ),
    *((name, "num_sample", " (did you mean 'num_samples'?)") for name in (*BOUNDS, "predict")),
    (ARVIZ, "sead", " (did you mean 'seed'?)"),
    ("find_symmetry", "scale", " (did you mean 'scales'?)"),
    ("find_symmetry", "rotations", ": there are ['scales', 'signs', 'y']"),
]


@pytest.mark.parametrize(("name", "keyword", "advice"), MISSPELLED)
def test_a_keyword_of_neither_is_named_with_what_was_meant(name, keyword, advice):
    message = f"neither {name} nor the program has a keyword '{keyword}'{advice}"
    with pytest.raises(TypeError, match=re.escape(message)):
        CALLS[name][0](plain, Y, **{keyword: 8})


def test_keywords_that_only_a_decorator_takes_are_passed_on():
    @functools.wraps(plain)
    def decorated(y, shift=0.0):
        plain(y + shift)

    assert pp.predict(decorated, guide_of(model), Y, shift=1.0, **QUIET).draws.shape == (1000, 4)


def test_other_errors_of_the_type_are_left_alone():
    def wrong(y, *, shift):
        raise TypeError("of the model's own")

    with pytest.raises(TypeError, match="of the model's own"):
        pp.find_symmetry(wrong, Y, shift=1.0)


def test_a_guide_in_the_place_of_the_model_is_refused():
    message = "predict is given an AutoNormal, a guide, as its model: give model, posterior in this"
    with pytest.raises(TypeError, match=message):
        pp.predict(guide_of(model), model, Y)


@pytest.mark.parametrize("program", HANDLED)
def test_it_is_seen_through_handlers(program):
    with pytest.raises(ValueError, match="'site'"):
        pp.predict(program, guide_of(model), Y, site="y", **{})


def test_both_get_theirs_where_the_programs_is_bound():
    bound = functools.partial(model, site=5.0, progress=6.0)
    guide = AutoNormal(bound, init_scale=0.01)
    guide(Y)
    found = pp.predict(bound, guide, Y, site="y", progress=False)
    assert found.means.shape == (1000, 4)
    data = pp.to_arviz(bound, guide, Y, num_prior_samples=400, **QUIET)
    assert data["prior"]["w"].mean() == pytest.approx(11.0, abs=0.2)


def test_positional_arguments_are_the_programs():
    def other(y, seed=0.0):
        model(y, seed)

    data = pp.to_arviz(other, guide_of(model), Y, 8.0, seed=3, num_prior_samples=400, **QUIET)
    assert data.attrs["seed"] == 3
    assert data["prior"]["w"].mean() == pytest.approx(8.0, abs=0.2)


def test_keywords_of_the_program_alone_are_passed_on():
    def other(y, *, shift):
        model(y, shift)

    guide = AutoNormal(other)
    guide(Y, shift=1.0)
    data = pp.to_arviz(other, guide, Y, shift=9.0, num_prior_samples=400, **QUIET)
    assert data["prior"]["w"].mean() == pytest.approx(9.0, abs=0.2)


def test_defaults_of_the_program_stay_where_nobody_passes_the_keyword():
    assert pp.predict(model, guide_of(model), Y).draws.shape == (1000, 4)


def test_programs_without_a_signature_take_what_they_are_given():
    @refuse_shared_keywords
    def function(program, *args, flag=False):
        return flag

    for program in (print, type, dict, len):
        assert function(program, flag=True)
    assert function(program=print, flag=True)
    with pytest.raises(ValueError, match="'flag'"):
        function(program=lambda flag: None, flag=True)


@pytest.mark.parametrize("program", HANDLED)
def test_signatures_name_the_programs_own_parameters(program):
    assert list(signature_of(program).parameters)[:2] == ["y", "seed"]


def test_tensor_arguments_have_the_programs_names():
    def function(x, *more, y, **options):
        pass

    x = torch.ones(2)
    call = Call(function, (x, x + 1, "text"), {"y": x + 2, "scale": x + 3, "flag": True})
    assert list(call.tensors()) == ["x", "more_0", "y", "scale"]
    assert torch.equal(call.tensors()["scale"], x + 3)
