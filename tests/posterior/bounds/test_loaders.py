"""Data that come batch by batch count as if they came at once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import pyro_perm as pp
from pyro_perm.posterior.bounds.packed_model import PackedModel
from pyro_perm.program.batches import Data

N = 11


def weights():
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    return w1, w2


def mean(x):
    w1, w2 = weights()
    return torch.tanh(x @ w1.T) @ w2


def whole(x, y):
    f = mean(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def sized(x, y):
    f = mean(x)
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def looked_up(x, y, size=4):
    f = mean(x)
    with pyro.plate("data", len(x), subsample_size=size) as i:
        pyro.sample("y", dist.Normal(f[i], 0.3), obs=y[i])


def enumerated(x, y):
    f = mean(x)
    with pyro.plate("data", N, subsample_size=len(x)):
        sign = pyro.sample("sign", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal((2 * sign - 1) * f, 0.3), obs=y)


def scaled(x, y):
    with poutine.scale(scale=1 / N):
        sized(x, y)


MODELS = [whole, sized, enumerated, scaled]


@pytest.fixture
def data():
    x = torch.randn(N, 2)
    return x, torch.sin(2 * x[:, 0])


def guide_of(model, *args):
    base = AutoNormal(poutine.block(model, hide=["sign"]), init_loc_fn=pp.init_to_fan_in)
    guide = pp.AutoSymmetrized(base, pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}}))
    guide(*args)
    return guide


def elbo(model, guide, *args, **kwargs):
    options = {"num_samples": 6, "progress": False, "estimator": pp.ImportanceSampled(4)}
    return pp.symmetrized_elbo(model, guide, *args, **options | kwargs)


def require_equal(found, expected):
    for name in ("base", "lower", "upper", "base_standard_error", "lower_standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    assert found.weight == expected.weight


def loaders(x, y):
    dataset = TensorDataset(x, y)
    return {
        "DataLoader": DataLoader(dataset, batch_size=4),
        "shuffled": DataLoader(dataset, batch_size=5, shuffle=True),
        "list": [(x[:7], y[:7]), (x[7:], y[7:])],
        "one batch": [(x, y)],
        "keywords": DataLoader(
            dataset,
            batch_size=4,
            collate_fn=lambda rows: dict(
                zip("xy", map(torch.stack, zip(*rows, strict=True)), strict=True)
            ),
        ),
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["DataLoader", "shuffled", "list", "one batch", "keywords"])
def test_the_elbo_is_that_of_all_data_at_once(model, kind, data):
    guide = guide_of(model, *data)
    expected = elbo(model, guide, *data)
    require_equal(elbo(model, guide, loaders(*data)[kind]), expected)


def test_pilot_draws_see_all_data_too(data):
    guide = guide_of(sized, *data)
    results = [
        pp.symmetrized_elbo(sized, guide, *args, num_samples=4, max_seconds=1e3, progress=False)
        for args in (data, [loaders(*data)["DataLoader"]])
    ]
    require_equal(*results)


def test_a_loader_is_read_once_for_the_reported_draws(data):
    class Counting(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return super().__iter__()

    guide, loader = guide_of(sized, *data), Counting(loaders(*data)["list"])
    elbo(sized, guide, loader, num_samples=4)
    few = loader.reads
    elbo(sized, guide, loader, num_samples=20)
    assert loader.reads == 2 * few <= 8


def test_a_loader_is_known_from_an_argument(data):
    """Where the model takes what the loader would be, it gets it."""

    def of_tasks(tasks):
        f, y = mean(torch.cat([x for x, _ in tasks])), torch.cat([y for _, y in tasks])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(f, 0.3), obs=y)

    guide, tasks = guide_of(whole, *data), loaders(*data)["list"]
    require_equal(elbo(of_tasks, guide, tasks), elbo(whole, guide, *data))
    with pytest.raises(ValueError, match="come from a generator, which can be read only once"):
        elbo(whole, guide, (batch for batch in tasks))
    with pytest.raises(ValueError, match="the loader gives no batch"):
        elbo(whole, guide, DataLoader(TensorDataset(data[0][:0])))


def test_plates_that_look_their_rows_up_run_through_all_of_them(data):
    guide = guide_of(whole, *data)
    require_equal(elbo(looked_up, guide, *data), elbo(whole, guide, *data))


def test_information_is_that_of_the_guide(data):
    guide = guide_of(sized, *data)
    options = {"num_samples": 5, "progress": False}
    found = pp.mutual_information(guide, loaders(*data)["shuffled"], **options)
    assert found == pp.mutual_information(guide, *data, **options)


@pytest.mark.parametrize("args", [0, 1])
def test_one_batch_of_a_larger_plate_is_refused(args, data):
    x, y = data
    guide = guide_of(sized, *data)
    message = r"plate 'data' has 11 rows, but the arguments are a batch of 4, .* pass a loader"

    def named(x, y):
        f = mean(x)
        with pyro.plate("data", N, subsample=torch.arange(4)):
            pyro.sample("y", dist.Normal(f, 0.3), obs=y)

    model = (sized, named)[args]
    with pytest.raises(ValueError, match=message):
        elbo(model, guide, x[:4], y[:4])
    with pytest.raises(ValueError, match=message):
        pp.log_evidence(model, x[:4], y[:4], progress=False)


def with_rows(x, y, rows):
    f = mean(x)
    with pyro.plate("data", N, subsample=rows):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(f + shift, 0.3), obs=y)


def plates(x, y, rows):
    return pyro.plate("data", N, subsample=rows, dim=-1)


def test_latents_of_each_row_are_drawn_with_their_batch(data):
    """They are given almost no room, so that their draws are the same in both runs."""
    x, y = data
    rows = torch.arange(N)
    options = {"create_plates": plates, "init_loc_fn": pp.init_to_fan_in, "init_scale": 1e-5}
    guide = AutoNormal(with_rows, **options)
    guide(x, y, rows)
    symmetry = {"symmetry": pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}})}
    expected = elbo(with_rows, guide, x, y, rows, **symmetry)
    loader = DataLoader(TensorDataset(x, y, rows), batch_size=4, shuffle=True)
    found = elbo(with_rows, guide, loader, **symmetry)
    assert found.base == pytest.approx(expected.base, rel=1e-4)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (range(8), "have 8 rows in all, but plate 'data' has 11: give each row once"),
        ([*range(10), 3], "have 10 different rows in all, but plate 'data' has 11"),
    ],
)
def test_rows_left_out_or_repeated_are_refused(order, message, data):
    dataset = TensorDataset(*data, torch.arange(N))
    loader = DataLoader(torch.utils.data.Subset(dataset, list(order)), batch_size=4)
    guide = AutoNormal(with_rows, create_plates=plates, init_loc_fn=pp.init_to_fan_in)
    guide(*dataset[:])
    with pytest.raises(ValueError, match=message):
        elbo(
            with_rows,
            guide,
            loader,
            symmetry=pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}}),
        )


def test_drop_last_is_refused(data):
    loader = DataLoader(TensorDataset(*data), batch_size=4, drop_last=True)
    for evaluate in (lambda: elbo(sized, guide_of(sized, *data), loader), lambda: evidence(loader)):
        with pytest.raises(ValueError, match=r"have 8 rows in all, .* without drop_last=True"):
            evaluate()


def test_what_changes_with_the_batch_outside_of_its_plate_is_refused(data):
    def penalized(x, y):
        sized(x, y)
        pyro.factor("penalty", -x.square().sum())

    def constant(x, y):
        sized(x, y)
        pyro.factor("penalty", torch.tensor(-3.0))

    guide, loader = guide_of(sized, *data), loaders(*data)["DataLoader"]
    with pytest.raises(ValueError, match=r"of 'penalty' changes from .*: put it into that plate"):
        elbo(penalized, guide, loader)
    plain = elbo(sized, guide, loader)
    assert elbo(constant, guide, loader).lower == pytest.approx(plain.lower - 3.0)


def test_a_loader_without_a_plate_is_refused(data):
    def unplated(x, y):
        pyro.sample("y", dist.Normal(mean(x), 0.3).to_event(1), obs=y)

    with pytest.raises(ValueError, match="no plate of the model has the 4 rows of the loader's"):
        elbo(unplated, guide_of(whole, *data), loaders(*data)["DataLoader"])


def test_guides_whose_weights_depend_on_the_batch_are_refused(data):
    def guide(x, y):
        shift = x.mean()
        pyro.sample("w1", dist.Normal(shift, 1.0).expand([3, 2]).to_event(2))
        pyro.sample("w2", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    symmetry = {"symmetry": pp.PermutationSymmetry({"hidden": {"w1": 0, "w2": 0}})}
    loader = loaders(*data)["DataLoader"]
    message = "draws the symmetric site 'w1' from another density at the loader's second batch"
    with pytest.raises(ValueError, match=message):
        elbo(sized, guide, loader, **symmetry)


def linear(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def evidence(*args):
    options = {"num_particles": 40, "num_temperatures": 30, "num_leapfrog_steps": 3}
    return pp.log_evidence(linear, *args, **options, progress=False)


@pytest.mark.slow
def test_the_evidence_is_that_of_all_data(data):
    x, y = data
    covariance = 0.25 * torch.eye(N) + x @ x.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(N), covariance).log_prob(y)
    found = evidence(loaders(*data)["shuffled"])
    assert abs(found.log_evidence - exact) < 4 * found.standard_error < 2.0


def test_batches_share_the_log_likelihood(data):
    whole, split = (
        PackedModel(linear, Data.of(linear, d, {})) for d in (data, [loaders(*data)["list"]])
    )
    w = torch.randn(2)
    parts = [split.log_densities(w, batch) for batch in range(split.num_batches)]
    torch.testing.assert_close(tuple(map(sum, zip(*parts, strict=True))), whole.log_densities(w))


def test_the_evidence_of_latents_of_each_row_wants_all_rows(data):
    loader = DataLoader(TensorDataset(*data, torch.arange(N)), batch_size=4)
    with pytest.raises(ValueError, match="latent site 'shift' lies in plate 'data', of which"):
        pp.log_evidence(with_rows, loader, progress=False)
