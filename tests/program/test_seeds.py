"""A fixed seed is that of Pyro's handler, and cheaper."""

import random
import traceback

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from pyro_perm.program.seeds import fixed_seed


def draws():
    return torch.randn(3).tolist(), random.random(), np.random.rand()


def test_it_is_that_of_pyros_handler_and_is_gone_afterwards():
    with poutine.seed(rng_seed=0):
        expected = draws()
    state = pyro.util.get_rng_state()
    after = draws()
    pyro.util.set_rng_state(state)
    with fixed_seed():
        assert draws() == expected
    assert draws() == after


def test_the_random_state_is_as_it_was_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="in between"), fixed_seed():
        torch.rand(2)
        raise ValueError("in between")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there torch.manual_seed is what serves")
def test_no_stack_is_formatted_for_devices_that_are_not_there(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the stack was formatted")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    with pytest.raises(AssertionError), poutine.seed(rng_seed=0):
        pass
    with fixed_seed():
        pass
