"""A site whose units were permuted is a point mass that knows where it comes from."""

import pyro.distributions as dist
import pytest
import torch

from pyro_perm.density.moved_delta import MovedDelta, as_drawn

DRAWN = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def moved(drawn_from):
    return MovedDelta(DRAWN, drawn_from, lambda tensor: tensor.flip(-1))


POINT = dist.Delta(DRAWN, log_density=torch.tensor([0.5, -0.5]), event_dim=1)
NORMAL = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)


@pytest.mark.parametrize("drawn_from", [POINT, NORMAL])
def test_it_has_the_shape_of_what_was_drawn_and_the_moved_value(drawn_from):
    point = moved(drawn_from)
    assert (point.batch_shape, point.event_shape) == ((2,), (3,))
    torch.testing.assert_close(point(), DRAWN.flip(-1))
    torch.testing.assert_close(as_drawn(point), DRAWN)
    torch.testing.assert_close(as_drawn(POINT), DRAWN)
    expected = POINT.log_density if drawn_from is POINT else torch.zeros(2)
    for value in (point.v, point.v.clone()):
        torch.testing.assert_close(point.log_prob(value), expected.to(value), check_dtype=False)
    assert (point.log_prob(DRAWN) == -torch.inf).all()


@pytest.mark.parametrize("drawn_from", [POINT, NORMAL])
def test_it_expands_as_a_delta(drawn_from):
    wide = moved(drawn_from).expand(torch.Size([4, 2]))
    assert isinstance(wide, MovedDelta)
    assert wide.batch_shape == (4, 2)
    assert wide().shape == (4, 2, 3)
    assert wide.log_prob(wide.v).shape == (4, 2)


def test_the_variance_of_what_was_drawn_from_a_normal_is_not_zero():
    with pytest.raises(ValueError, match="permute=False"):
        _ = moved(NORMAL).variance
    assert (moved(POINT).variance == 0).all()
