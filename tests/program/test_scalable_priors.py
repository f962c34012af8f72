"""Which priors rescaled sites may have, and in which words the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions.transforms import AffineTransform

from pyro_perm.program.call import Call
from pyro_perm.program.opening import open_program
from pyro_perm.program.scalable_priors import unscalable_sites


def reasons(prior: Callable[[], Any], mask: bool = True) -> dict[str, str]:
    def model() -> None:
        with poutine.mask(mask=mask):
            w = pyro.sample("w", prior())
        pyro.factor("f", w.sum())

    with open_program(Call(model)) as program:
        return unscalable_sites(program)


@pytest.mark.parametrize(
    "prior",
    [
        lambda: dist.Normal(0.0, 1.0),
        lambda: dist.Normal(torch.arange(3.0), 1e-3).to_event(1),
        lambda: dist.Normal(0.0, 1e4).expand([2, 3]).to_event(2),
        lambda: dist.Laplace(0.0, 1.0).expand([3]).mask(True),
        lambda: dist.Cauchy(0.0, 1.0).expand([3]).to_event(1),
        lambda: dist.StudentT(2.0).expand([3]),
        lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0), [AffineTransform(1.0, 2.0)]),
    ],
)
def test_densities_of_independent_entries_are_taken(prior: Callable[[], Any]) -> None:
    assert reasons(prior) == {}


SHIFTED = [AffineTransform(1.0, 2.0)]


@pytest.mark.parametrize(
    ("prior", "reason"),
    [
        (lambda: dist.HalfNormal(1.0), "does not have the whole real line as its support"),
        (lambda: dist.Dirichlet(torch.ones(3)), "does not have the whole real line"),
        (lambda: dist.LogNormal(0.0, 1.0), "does not have the whole real line"),
        (lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), "couples its entries"),
        (lambda: dist.MultivariateStudentT(3.0, torch.zeros(3), torch.eye(3)), "couples its"),
        (lambda: dist.Delta(torch.zeros(3)).to_event(1), "is no density on the whole real line"),
        (lambda: dist.TransformedDistribution(dist.LogNormal(0.0, 1.0), SHIFTED), "is no density"),
        (lambda: dist.Normal(0.0, 1.0).expand([3]).mask(False), "is no density"),
        (
            lambda: dist.Normal(0.0, 1.0).expand([3]).mask(torch.tensor([True, False, True])),
            "is no density on the whole real line, or masked",
        ),
    ],
)
def test_other_priors_are_refused(prior: Callable[[], Any], reason: str) -> None:
    assert reason in reasons(prior)["w"]


def test_priors_that_the_model_masks_are_refused() -> None:
    assert "or masked" in reasons(lambda: dist.Normal(0.0, 1.0), mask=False)["w"]


def test_single_precision_is_enough() -> None:
    torch.set_default_dtype(torch.float32)
    assert reasons(lambda: dist.Normal(0.0, 1e-2).expand([1000, 1000]).to_event(2)) == {}
