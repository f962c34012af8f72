"""The divergence of Normals, and its gradient in closed form."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pyro_perm.functional.normal_kl import fused_normal_kl, normal_kl


def parameters(*shapes):
    loc, scale, prior_loc, prior_scale = (torch.randn(s, requires_grad=True) for s in shapes)
    return loc, scale.exp(), prior_loc, prior_scale.exp()


@pytest.mark.parametrize("kl", [normal_kl, fused_normal_kl])
@pytest.mark.parametrize("prior", [(3, 2), (2,), ()])
def test_it_is_the_divergence(kl, prior):
    q_and_p = parameters((3, 2), (3, 2), prior, prior)
    expected = kl_divergence(Normal(*q_and_p[:2]), Normal(*q_and_p[2:]))
    assert torch.allclose(kl(*q_and_p), expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("prior", [(3, 2), (2,), ()])
def test_its_derivatives_are_right_in_all_parameters(prior):
    q_and_p = [p.detach().requires_grad_() for p in parameters((3, 2), (3, 2), prior, prior)]
    assert torch.autograd.gradcheck(fused_normal_kl, q_and_p)
    assert torch.autograd.gradgradcheck(fused_normal_kl, q_and_p)
