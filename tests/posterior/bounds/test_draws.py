"""Bounds draw by draw, in batches that fit."""

import torch
from densities import draws_from, mean_and_error, two_layers

import pyro_perm as pp
from pyro_perm.posterior.bounds.draws import _chunks, bounds_of_draws, standard_error


def draws(density, num):
    draw = draws_from(density)
    return [draw().density for _ in range(num)]


def test_chunks_hold_all_samples_and_shared_parameters_once():
    densities = draws(two_layers(100, 2, 0.5, 1), 20)
    chunks = list(_chunks(densities))
    assert 1 < len(chunks) <= 20
    assert sum(chunk.batch_shape.numel() for chunk in chunks) == 20
    assert all(chunk.locs["w2"].shape == (100, 100) for chunk in chunks)
    joined = torch.cat([chunk.values["w1"] for chunk in chunks])
    torch.testing.assert_close(joined, torch.stack([d.values["w1"] for d in densities]))


def test_bounds_come_draw_by_draw():
    densities = draws(two_layers(3, 2, 0.5, 1), 7)
    bounds = bounds_of_draws(pp.Exact(), densities)
    alone = torch.stack([-pp.Exact().log_ratio(density) for density in densities])
    torch.testing.assert_close(bounds.lower, alone)
    torch.testing.assert_close(bounds.upper, alone)
    assert bounds_of_draws(pp.InfoNCE(2), densities).upper is None


def test_standard_error_is_that_of_the_mean():
    values = torch.randn(50)
    assert standard_error(values) == mean_and_error(values)[1]
