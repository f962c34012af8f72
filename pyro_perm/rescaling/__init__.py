r"""Rescaling of units: densities of orbits, draws along them. Tensors in, tensors out.

A unit with a positively homogeneous activation may be rescaled: its incoming weights and bias times
``c > 0``, its outgoing weights times ``1 / c``. With :math:`c = e^t` and the Jacobian
:math:`e^{a t}`, where ``a`` is the number of incoming minus that of outgoing entries, the density
of an orbit under ``f`` is :math:`f_Q(w) = \int f(t . w)\, e^{a t}\, dt`. A guide ``q`` that keeps
its law of orbits and takes the prior's law along each has the density

.. math:: \tilde q(w) = p(w)\, q_Q(w) / p_Q(w) .

Among all distributions with the same law of orbits, and so with the same predictions, it has the
smallest divergence from the prior, :math:`KL(\tilde q \| p) = KL(q_Q \| p_Q)`.
"""

from pyro_perm.rescaling.any_density import (
    LogDensity,
    log_orbit_mass_under,
    sample_along_orbits_under,
)
from pyro_perm.rescaling.coupled import (
    CoupledExponent,
    Coupling,
    Layer,
    coupled_log_mass,
    find_coupled_mode,
    sampled_coupled_log_mass,
)
from pyro_perm.rescaling.degrees import Degrees
from pyro_perm.rescaling.integral import (
    TOLERANCE,
    OrbitIntegral,
    log_integral,
    orbit_integral,
    tolerance_for,
)
from pyro_perm.rescaling.orbit_draws import sample_along_orbits, sample_log_scales
from pyro_perm.rescaling.units import (
    OrbitPairs,
    UnitEntries,
    log_orbit_mass,
    log_orbit_mass_ratio,
    orbit_pairs,
    smallest_divergences,
)

__all__ = [
    "TOLERANCE",
    "CoupledExponent",
    "Coupling",
    "Degrees",
    "Layer",
    "LogDensity",
    "OrbitIntegral",
    "OrbitPairs",
    "UnitEntries",
    "coupled_log_mass",
    "find_coupled_mode",
    "log_integral",
    "log_orbit_mass",
    "log_orbit_mass_ratio",
    "log_orbit_mass_under",
    "orbit_integral",
    "orbit_pairs",
    "sample_along_orbits",
    "sample_along_orbits_under",
    "sample_log_scales",
    "sampled_coupled_log_mass",
    "smallest_divergences",
    "tolerance_for",
]
