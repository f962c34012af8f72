"""Running over all data equals not subsampling, however the program's plates nest."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_perm.program.full_data import log_joint, run

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


@pytest.mark.parametrize("model", [nested, unrelated, sequential])
@pytest.mark.parametrize("sizes", [(2, 3), (1, COLUMNS), (ROWS, 4)])
def test_subsampling_changes_nothing(model, sizes, y):
    full = run(model, (y, ROWS, COLUMNS), {})
    values = {name: site.value for name, site in full.items() if site.is_latent}
    joined = run(model, (y, *sizes), {}, values)
    assert joined.keys() == full.keys()
    for name, site in joined.items():
        torch.testing.assert_close(site.value, full[name].value, rtol=0, atol=0)
        torch.testing.assert_close(site.log_prob, full[name].log_prob)
        assert site.plates == full[name].plates
    torch.testing.assert_close(log_joint(joined), log_joint(full))


def test_log_joint_is_that_of_the_trace_without_subsampling(y):
    trace = poutine.trace(nested).get_trace(y, ROWS, COLUMNS)
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    sites = run(nested, (y, 2, 3), {}, {n: values[n] for n in ("level", "slope", "shift")})
    torch.testing.assert_close(log_joint(sites), trace.log_prob_sum())
    masked = sites["y"].log_prob[y <= -1]
    assert masked.numel() and not masked.any()


def test_what_lies_outside_of_subsampled_plates_is_drawn_once(y):
    def model():
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 100, subsample_size=7):
            pyro.sample("near", dist.Normal(level, 1e-6))

    sites = run(model, (), {})
    near = sites["near"].value
    torch.testing.assert_close(near, sites["level"].value.expand(100), rtol=0, atol=1e-4)
    assert near.unique().numel() == 100
    expected = dist.Normal(sites["level"].value, 1e-6).log_prob(near)
    torch.testing.assert_close(sites["near"].log_prob, expected)


def test_indices_of_the_programs_own_stay(y):
    index = torch.tensor([4, 1])

    def model():
        with pyro.plate("rows", ROWS, subsample=index) as i:
            assert i is index
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[i, 0])

    sites = run(model, (), {})
    torch.testing.assert_close(sites["y"].log_prob, dist.Normal(0.0, 1.0).log_prob(y[index, 0]))
    torch.testing.assert_close(log_joint(sites), ROWS / 2 * sites["y"].log_prob.sum())


def test_guides_draw_their_local_latents_for_all_data(y):
    def plates(y, rows, columns):
        return [
            pyro.plate("rows", ROWS, subsample_size=rows, dim=-2),
            pyro.plate("columns", COLUMNS, subsample_size=columns, dim=-1),
        ]

    guide = AutoNormal(nested, create_plates=plates)
    guide(y, 2, 3)
    sites = run(guide, (y, 2, 3), {})
    shapes = {"level": (), "slope": (COLUMNS, 2), "shift": (ROWS, 1)}
    for name, shape in shapes.items():
        assert sites[name].value.shape == shape
    log_q = sum(
        dist.Normal(getattr(guide.locs, n), getattr(guide.scales, n)).log_prob(sites[n].value).sum()
        for n in shapes
    )
    torch.testing.assert_close(log_joint(sites), log_q)


def test_programs_subsample_again_afterwards(y):
    run(nested, (y, 2, 3), {})
    trace = poutine.trace(nested).get_trace(y, 2, 3)
    assert trace.nodes["y"]["value"].shape == (2, 3)
