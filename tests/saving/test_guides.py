"""A guide that was saved and loaded is the guide that was saved."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from marks import on_each
from problems import PROBLEMS, SIGNED_PROBLEMS, local_latents, one_hidden_layer
from processes import context
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import pyro_perm as pp
from pyro_perm.saving.file import read

KINDS = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
]


def made(kind, problem=None, symmetrized=True, steps=2):
    """A guide of a kind, trained for a few steps."""
    problem = problem or one_hidden_layer(3)
    options = {"create_plates": problem.create_plates} if kind is AutoNormal else {}
    base = kind(problem.model, init_loc_fn=pp.init_to_fan_in, **options)
    estimator = pp.ImportanceSampled(4)
    guide = base
    if symmetrized:
        guide = pp.AutoSymmetrized(base, problem.symmetry(), estimator=estimator)
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(steps):
        svi.step(*problem.args)
    return guide


def draws(guide, args):
    pyro.set_rng_seed(5)
    return [guide(*args) for _ in range(3)]


def require_equal(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def round_trip(guide, model, path, **kwargs):
    pp.save(guide, path)
    pyro.clear_param_store()
    return pp.load(model, path, **kwargs)


@pytest.mark.parametrize("symmetrized", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_draws_the_same(kind, symmetrized, tmp_path):
    problem = one_hidden_layer(3)
    guide = made(kind, problem, symmetrized)
    expected = draws(guide, problem.args)
    loaded = round_trip(guide, problem.model, tmp_path / "guide")
    assert type(loaded) is type(guide)
    require_equal(draws(loaded, problem.args), expected)
    medians = guide.median(*problem.args), loaded.median(*problem.args)
    assert all(torch.equal(medians[0][name], medians[1][name]) for name in medians[0])


def laplace():
    problem = one_hidden_layer(3)
    mode = AutoLaplaceApproximation(problem.model, init_loc_fn=pp.init_to_fan_in)
    svi = SVI(problem.model, mode, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(100):
        svi.step(*problem.args)
    guide = pp.laplace_approximation(mode, *problem.args)
    guide(*problem.args)
    return problem, guide


@pytest.mark.parametrize("symmetrized", [True, False])
def test_gaussians_that_have_nothing_to_train_come_back(symmetrized, tmp_path):
    problem, guide = laplace()
    guide = guide if symmetrized else guide.base
    expected = draws(guide, problem.args)
    pp.save(guide, tmp_path / "guide")
    of_another = pyro.param("AutoMultivariateNormal.loc", torch.zeros(2))
    loaded = pp.load(problem.model, tmp_path / "guide")
    assert pyro.param("AutoMultivariateNormal.loc") is of_another
    torch.testing.assert_close(draws(loaded, problem.args), expected)  # Other strides round else.
    state, own = loaded.state_dict(), guide.state_dict()
    assert state.keys() == own.keys() and not list(loaded.parameters())
    assert all(torch.equal(state[name], own[name]) for name in own)


@pytest.mark.parametrize(("name", "size"), [("mean", 3), ("loc", 2)])
def test_buffers_of_other_guides_are_refused(name, size, tmp_path):
    problem, guide = laplace()
    guide.base._buffers[name] = torch.zeros(size)
    pp.save(guide, tmp_path / "guide")
    with pytest.raises(ValueError, match=rf"the buffer '{name}' of shape \({size},\) is none of"):
        pp.load(problem.model, tmp_path / "guide")


@on_each(PROBLEMS + SIGNED_PROBLEMS)
def test_each_symmetry_comes_back(problem, tmp_path):
    guide = problem.guide()
    guide(*problem.args)
    plates = {"create_plates": problem.create_plates}
    loaded = round_trip(guide, problem.model, tmp_path / "guide", **plates)
    assert loaded.symmetry == guide.symmetry
    assert loaded.symmetry.group == guide.symmetry.group
    assert loaded.estimator == guide.estimator and loaded.permute is guide.permute
    require_equal(draws(loaded, problem.args), draws(guide, problem.args))


@pytest.mark.parametrize("constant", [True, False])
def test_scales_come_back(constant, tmp_path):
    """The priors along the orbits are read off the model when it first runs."""
    x = torch.linspace(-1, 1, 6)[:, None]

    def model(x):
        width = 1.0
        if not constant:
            width = pyro.sample("width", dist.LogNormal(0.0, 0.1))
        w1 = pyro.sample("w1", dist.Normal(0.0, width).expand([3, 1]).to_event(2))
        w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.relu(x @ w1.T) @ w2, 0.5), obs=x[:, 0])

    axes = {"w1": pp.Axis(0, scale=1), "w2": pp.Axis(0, scale=-1)}
    base = AutoNormal(model, init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry({"hidden": axes}))
    guide(x)
    loaded = round_trip(guide, model, tmp_path / "guide")
    assert loaded.symmetry.group == guide.symmetry.group
    found, expected = [], []
    for each, values in ((guide, expected), (loaded, found)):
        pyro.set_rng_seed(2)
        posterior = each.sample_posterior(3, x)
        values += [{**posterior.values, "log_q": posterior.log_q}]
    require_equal(found, expected)
    require_equal(draws(loaded, (x,)), draws(guide, (x,)))


def supports():
    pyro.sample("tau", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    pyro.sample("cholesky", dist.LKJCholesky(3, 1.0))
    low = torch.tensor([0.1, 0.2, 0.3])
    pyro.sample("bounded", dist.Uniform(low, low + 2).to_event(1))
    pyro.sample("between", dist.Beta(1.0, 1.0))
    pyro.sample("above", dist.Pareto(torch.tensor(2.0), torch.tensor(1.0)))
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("kind", KINDS)
def test_supports_and_plates_come_back(kind, tmp_path):
    guide = kind(supports)
    guide()
    expected = draws(guide, ())
    require_equal(draws(round_trip(guide, supports, tmp_path / "guide"), ()), expected)


def test_other_constraints_of_scales_come_back(tmp_path, monkeypatch):
    problem = one_hidden_layer(3)
    monkeypatch.setattr(AutoNormal, "scale_constraint", dist.constraints.positive)
    guide = made(AutoNormal, problem)
    expected = draws(guide, problem.args)
    pp.save(guide, tmp_path / "guide")
    monkeypatch.undo()
    pyro.clear_param_store()
    require_equal(draws(pp.load(problem.model, tmp_path / "guide"), problem.args), expected)


def test_precision_is_that_of_the_file(tmp_path):
    problem = one_hidden_layer(3)
    guide = made(AutoNormal, problem)
    pp.save(guide, tmp_path / "guide")
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
    loaded = pp.load(problem.model, tmp_path / "guide")
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


def test_loaded_guides_train_on_as_the_saved_one_does(tmp_path):
    problem = one_hidden_layer(3)

    def losses(guide):
        pyro.set_rng_seed(3)
        svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        return [svi.step(*problem.args) for _ in range(4)]

    guide = made(AutoNormal, problem)
    loaded = round_trip(guide, problem.model, tmp_path / "guide")
    found = losses(loaded)
    pyro.clear_param_store()
    assert found == losses(guide)


def test_loading_changes_no_random_state_and_runs_no_model(tmp_path):
    problem = one_hidden_layer(3)
    guide = made(AutoLowRankMultivariateNormal, problem)
    pp.save(guide, tmp_path / "guide")
    pyro.clear_param_store()

    def model(*args):
        raise AssertionError("the model ran")

    state = torch.get_rng_state()
    pp.load(model, tmp_path / "guide")
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


def test_what_the_store_holds_is_what_is_saved(tmp_path):
    """A guide takes over what was loaded into the store at its next call."""
    problem = one_hidden_layer(3)
    guide = made(AutoNormal, problem)
    pyro.get_param_store()["AutoNormal.locs.w1"] = torch.ones(3, 2)
    loaded = round_trip(guide, problem.model, tmp_path / "guide")
    assert torch.equal(loaded.median()["w1"], torch.ones(3, 2))


def test_values_of_another_guide_in_the_store_are_refused(tmp_path):
    problem = one_hidden_layer(3)
    guide = made(AutoNormal, problem)
    pp.save(guide, tmp_path / "guide")
    pp.load(problem.model, tmp_path / "guide")  # The store has the same values.
    pyro.get_param_store()["AutoNormal.locs.w1"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"'locs\.w1', .* call pyro.clear_param_store\(\)"):
        pp.load(problem.model, tmp_path / "guide")
    pyro.settings.set(module_local_params=True)
    assert pp.load(problem.model, tmp_path / "guide").median()["w1"].isfinite().all()


def test_plates_by_hand_are_asked_for(tmp_path):
    problem = local_latents()
    guide = made(AutoNormal, problem)
    with pytest.raises(ValueError, match=r"was given create_plates=, a function, .* pass it"):
        round_trip(guide, problem.model, tmp_path / "guide")


@pytest.mark.parametrize("kind", [AutoDelta, AutoGuideList])
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    guide = kind(one_hidden_layer(3).model)
    with pytest.raises(TypeError, match=f"this is a {kind.__name__}: save its state_dict"):
        pp.save(guide, tmp_path / "guide")


def test_a_function_is_told_where_its_parameters_are(tmp_path):
    def guide():
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    with pytest.raises(TypeError, match=r"this is a function: .*get_param_store\(\)\.save\(path"):
        pp.save(guide, tmp_path / "guide")


def test_guides_that_have_not_run_are_refused(tmp_path):
    problem = one_hidden_layer(3)
    for guide in (problem.base(), problem.guide()):
        with pytest.raises(ValueError, match=r"no parameters yet: call guide\(\*args\)"):
            pp.save(guide, tmp_path / "guide")


class Mine(pp.Estimator):
    def log_ratio(self, density):
        return pp.Exact().log_ratio(density)


def test_estimators_that_cannot_be_written_are_refused(tmp_path):
    problem = one_hidden_layer(3)
    guide = problem.guide(Mine())
    guide(*problem.args)
    with pytest.raises(ValueError, match="make its class a dataclass, and register it"):
        pp.save(guide, tmp_path / "guide")
    assert not (tmp_path / "guide").exists()


def test_sites_that_cannot_be_written_are_refused(tmp_path):
    constraint = dist.constraints.stack([dist.constraints.real, dist.constraints.positive])

    class Odd(dist.Normal):
        @dist.constraints.dependent_property(event_dim=0)
        def support(self):
            return constraint

    guide = AutoNormal(lambda: pyro.sample("odd", Odd(torch.zeros(2), torch.ones(2)).to_event(1)))
    guide()
    with pytest.raises(ValueError, match=r"site 'odd' cannot be saved: .* Save guide\.state_dict"):
        pp.save(guide, tmp_path / "guide")


SCRIPT = """
import torch
torch.set_default_dtype(torch.float64)
import pyro
import pyro_perm as pp
from problems import one_hidden_layer
problem = one_hidden_layer(3)
for folder in folders:
    pyro.clear_param_store()
    guide = pp.load(problem.model, folder / "guide")
    pyro.set_rng_seed(7)
    prediction = pp.predict(problem.model, guide, *problem.args, num_samples=20, progress=False)
    found = {"draws": prediction.draws, "log_p": prediction.log_likelihood}
    torch.save(found, folder / "found")
"""


@pytest.mark.slow  # a process of its own
def test_a_new_process_predicts_the_same_bits(tmp_path):
    problem = one_hidden_layer(3)
    expected = {}
    for kind in KINDS:
        pyro.clear_param_store()
        folder = tmp_path / kind.__name__
        folder.mkdir()
        guide = made(kind, problem)
        pp.save(guide, folder / "guide")
        pyro.set_rng_seed(7)
        expected[folder] = pp.predict(
            problem.model, guide, *problem.args, num_samples=20, progress=False
        )
    process = context().Process(target=exec, args=(SCRIPT, {"folders": list(expected)}))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    for folder, prediction in expected.items():
        found = torch.load(folder / "found", weights_only=True)
        assert torch.equal(found["draws"], prediction.draws), folder.name
        assert torch.equal(found["log_p"], prediction.log_likelihood), folder.name


def test_the_file_says_what_it_holds(tmp_path):
    guide = made(AutoNormal)
    pp.save(guide, tmp_path / "guide")
    tensors, document = read(tmp_path / "guide", "guide")
    assert document["guide"] == "AutoNormal"
    assert document["symmetrized"]["estimator"] == {
        "name": "ImportanceSampled",
        "arguments": {"num_permutations": 4},
    }
    assert document["versions"].keys() == {"torch", "pyro"}
    assert "parameter.locs.w1_unconstrained" in tensors
