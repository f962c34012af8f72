"""Where these tests run."""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    if not torch.cuda.is_available():
        pytest.skip("torch finds no accelerator that has double precision")
    return torch.device("cuda")
