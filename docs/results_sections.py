"""The sections of the page of results, in their order."""

from __future__ import annotations

from collections.abc import Callable

from results_devices import devices
from results_mnist import mnist
from results_networks import laplace_width, modules
from results_others import cold_posterior, information, pac_bayes, pruning, recipes
from results_scales import coupled_scales, rescaling
from results_store import Store
from results_uci import uci

SECTIONS: tuple[Callable[[Store], str], ...] = (
    uci,
    rescaling,
    coupled_scales,
    information,
    pac_bayes,
    pruning,
    cold_posterior,
    mnist,
    recipes,
    modules,
    laplace_width,
    devices,
)
