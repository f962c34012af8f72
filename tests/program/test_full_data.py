"""Running over all data equals not subsampling, however the program's plates nest."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    LocScaleReparam,
    ProjectedNormalReparam,
    TransformReparam,
)

from pyro_perm.program.call import Call
from pyro_perm.program.full_data import survey
from pyro_perm.program.sites import SiteKind

ROWS, COLUMNS = 5, 7


def nested(y, rows, columns):
    """Subsamples of sizes that do not divide those of the plates; a latent at every level."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    row_plate = pyro.plate("rows", ROWS, subsample_size=rows, dim=-2)
    column_plate = pyro.plate("columns", COLUMNS, subsample_size=columns, dim=-1)
    with column_plate:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with row_plate as i, poutine.scale(scale=1.0 + i.unsqueeze(-1)):  # another one each row
        shift = pyro.sample("shift", dist.Normal(level, 1.0))
        with column_plate as j, poutine.mask(mask=y[i][:, j] > -1):
            mean = level + shift + slope.sum(-1)
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y[i][:, j])


def unrelated(y, rows, columns):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", ROWS, subsample_size=rows) as i:
        pyro.sample("first", dist.Normal(level, 1.0), obs=y[i, 0])
    with pyro.plate("columns", COLUMNS, subsample_size=columns) as j:
        pyro.sample("second", dist.Normal(level, 2.0), obs=y[0, j])


def sequential(y, rows, columns):
    """One site for each row, and inner plates whose names depend on the row."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", ROWS, subsample_size=rows):
        shift = pyro.sample(f"shift_{i}", dist.Normal(level, 1.0))
        with pyro.plate(f"columns_{i}", COLUMNS, subsample_size=columns) as j:
            pyro.sample(f"y_{i}", dist.Normal(shift, 0.5), obs=y[i, j])


@pytest.fixture
def y():
    return torch.randn(ROWS, COLUMNS)


def run(program, args, values=None):
    """The program, and one run of it over all data."""
    full = survey(Call(program, args))
    return full, full.draw(values)


def log_probs(terms):
    """Site -> log-density of each entry."""
    return {term.sites[0]: term.log_prob for term in terms}


@pytest.mark.parametrize("model", [nested, unrelated, sequential])
@pytest.mark.parametrize("sizes", [(2, 3), (1, COLUMNS), (ROWS, 4)])
def test_subsampling_changes_nothing(model, sizes, y):
    full, drawn = run(model, (y, ROWS, COLUMNS))
    values = {name: drawn.values[name] for name in full.names(SiteKind.LATENT)}
    subsampled = survey(Call(model, (y, *sizes)))
    joined = subsampled.draw(values)
    assert joined.values.keys() == drawn.values.keys()
    evaluated = subsampled.evaluate(values)
    for name, value in joined.values.items():
        torch.testing.assert_close(value, drawn.values[name], rtol=0, atol=0)
        assert subsampled.sites[name].plates == full.sites[name].plates
    for terms in (joined.terms, evaluated.terms):
        torch.testing.assert_close(log_probs(terms), log_probs(drawn.terms))
        torch.testing.assert_close(subsampled.log_joint(terms), full.log_joint(drawn.terms))


def test_log_joint_is_that_of_the_trace_without_subsampling(y):
    trace = poutine.trace(nested).get_trace(y, ROWS, COLUMNS)
    values = {name: trace.nodes[name]["value"] for name in ("level", "slope", "shift")}
    full = survey(Call(nested, (y, 2, 3)))
    terms = full.evaluate(values).terms
    torch.testing.assert_close(full.log_joint(terms), trace.log_prob_sum())
    masked = log_probs(terms)["y"][y <= -1]
    assert masked.numel() and not masked.any()


def test_what_lies_outside_of_subsampled_plates_is_drawn_once(y):
    def model():
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=7) as i:
            pyro.sample("near", dist.Normal(level + 0 * i, 1e-6))

    _, drawn = run(model, ())
    near, level = drawn.values["near"], drawn.values["level"]
    torch.testing.assert_close(near, level.expand(100), rtol=0, atol=1e-4)
    assert near.unique().numel() == 100
    expected = dist.Normal(level, 1e-6).log_prob(near)
    torch.testing.assert_close(log_probs(drawn.terms)["near"], expected)


def test_indices_of_the_programs_own_stay(y):
    index = torch.tensor([4, 1])

    def model():
        with pyro.plate("rows", ROWS, subsample=index) as i:
            assert i is index
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[i, 0])

    full, drawn = run(model, ())
    log_prob = log_probs(drawn.terms)["y"]
    torch.testing.assert_close(log_prob, dist.Normal(0.0, 1.0).log_prob(y[index, 0]))
    torch.testing.assert_close(full.log_joint(drawn.terms), ROWS / 2 * log_prob.sum())


def test_guides_draw_their_local_latents_for_all_data(y):
    def plates(y, rows, columns):
        return [
            pyro.plate("rows", ROWS, subsample_size=rows, dim=-2),
            pyro.plate("columns", COLUMNS, subsample_size=columns, dim=-1),
        ]

    guide = AutoNormal(nested, create_plates=plates)
    guide(y, 2, 3)
    full, drawn = run(guide, (y, 2, 3))
    shapes = {"level": (), "slope": (COLUMNS, 2), "shift": (ROWS, 1)}
    for name, shape in shapes.items():
        assert drawn.values[name].shape == shape
    log_q = sum(
        dist.Normal(getattr(guide.locs, n), getattr(guide.scales, n))
        .log_prob(drawn.values[n])
        .sum()
        for n in shapes
    )
    torch.testing.assert_close(full.log_joint(drawn.terms), log_q)


def test_programs_subsample_again_afterwards(y):
    run(nested, (y, 2, 3))
    trace = poutine.trace(nested).get_trace(y, 2, 3)
    assert trace.nodes["y"]["value"].shape == (2, 3)


def by_indexing(y, i):
    return y[i]


def by_subsample(y, i):
    return pyro.subsample(y, event_dim=0)


def by_numpy(y, i):
    return torch.from_numpy(y.numpy()[i.numpy()])


def by_list(y, i):
    return torch.stack([y[k] for k in i.tolist()])


def by_iteration(y, i):
    return torch.stack([y[k] for k in i])


def by_gather(y, i):
    return y.gather(0, i.clone().long())


@pytest.mark.parametrize(
    "look_up", [by_indexing, by_subsample, by_numpy, by_list, by_iteration, by_gather]
)
def test_data_that_are_looked_up_are_all_seen(look_up, y):
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", ROWS, subsample_size=2) as i:
            pyro.sample("y", dist.Normal(level, 1.0), obs=look_up(y, i))

    full, drawn = run(model, (y[:, 0],))
    assert full.looked_up == {"rows"} and not full.passed
    assert torch.equal(drawn.values["y"], y[:, 0])


def test_a_batch_that_was_passed_is_the_data(y):
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=len(y)) as i:
            assert len(i) == i.shape[0] == len(y)  # Counting is not looking.
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    full, drawn = run(model, (y[:, 0],))
    assert full.passed == {"rows"} and not full.looked_up
    assert drawn.values["y"].shape == drawn.values["z"].shape == (ROWS,)
    log_prob = log_probs(drawn.terms)
    expected = log_prob["level"] + 100 / ROWS * (log_prob["z"] + log_prob["y"]).sum()
    torch.testing.assert_close(full.log_joint(drawn.terms), expected)


def test_reparametrized_and_deterministic_sites_are_functions(y):
    config = {
        "w": LocScaleReparam(0.0),
        "v": TransformReparam(),
        "s": ProjectedNormalReparam(),
        "d": DiscreteCosineReparam(),
    }

    @poutine.reparam(config=config)
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(3), scale).to_event(1))
        v = pyro.sample("v", dist.LogNormal(0.0, 1.0))
        s = pyro.sample("s", dist.ProjectedNormal(torch.zeros(2)))
        with pyro.plate("groups", 4):
            d = pyro.sample("d", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.deterministic("twice", 2 * d[..., 0], event_dim=0)
        mean = pyro.deterministic("mean", w.sum() + v + s.sum() + d.sum())
        pyro.factor("penalty", -mean.square())
        pyro.sample("exact", dist.Delta(mean), obs=mean + 1)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(1.0))

    full = survey(Call(model))
    latent = ["scale", "w_decentered", "v_base", "s_normal", "d_dct"]
    assert full.names(SiteKind.LATENT) == latent
    assert full.names(SiteKind.FUNCTION) == ["w", "v", "s", "d", "twice", "mean"]
    assert full.names(SiteKind.FACTOR) == ["penalty"]
    assert full.names(SiteKind.OBSERVATION) == ["exact", "y"]
    values = {name: full.sites[name].value for name in latent}
    for name, value in full.evaluate(values).functions.items():
        torch.testing.assert_close(value, full.sites[name].value)


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_a_scale_of_all_latent_sites_is_another_unit(scale, y):
    def model(y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", ROWS), poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y[:, 0])

    level = torch.tensor(0.3)
    log_p = (
        dist.Normal(0.0, 1.0).log_prob(level) + 2 * dist.Normal(level, 1.0).log_prob(y[:, 0]).sum()
    )
    full = survey(Call(poutine.scale(model, scale=scale), (y,)))
    torch.testing.assert_close(full.log_joint(full.evaluate({"level": level}).terms), log_p)
