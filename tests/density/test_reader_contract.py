"""Every reader of base guides keeps the contract, and each kind of guide is tried or refused."""

import pytest
from autoguides import REFUSED
from contracts.reader import EXAMPLES, ReaderContract

from pyro_perm.density.base_guides.registry import READERS, REFUSALS


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
class TestReader(ReaderContract):
    pass


def test_every_kind_that_is_read_has_an_example():
    assert {kind for reader in READERS for kind in reader.kinds} == set(EXAMPLES)


def test_every_kind_that_is_refused_is_tried():
    tried = [kind for refusal in REFUSALS for kind in refusal.kinds]
    assert all(any(issubclass(guide, kind) for guide in REFUSED) for kind in tried)
