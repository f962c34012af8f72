"""Laplace approximations in Pyro, symmetrized."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal

from pyro_perm.estimators import Estimator, ImportanceSampled
from pyro_perm.guide import AutoSymmetrized
from pyro_perm.permutation_symmetry import PermutationSymmetry
from pyro_perm.program.call import refuse_shared_keywords
from pyro_perm.program.log_prob_shapes import LogProbShapes

_NUM_PERMUTATIONS = 32


@refuse_shared_keywords
def laplace_approximation(
    mode: AutoLaplaceApproximation,
    *args: Any,
    symmetry: PermutationSymmetry | None = None,
    estimator: Estimator | None = None,
    **kwargs: Any,
) -> AutoSymmetrized:
    """The Gaussian at a mode that Pyro has found, symmetrized.

    Its precision is the Hessian of the negative log joint in unconstrained space (MacKay 1992).
    Usage:

    >>> import pyro, torch
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.infer.autoguide import AutoLaplaceApproximation
    >>> import pyro_perm as pp
    >>> _ = pyro.set_rng_seed(0)
    >>> def model(y):
    ...     w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([3]).to_event(1))
    ...     pyro.sample("y", pyro.distributions.Normal(w.tanh().sum(), 0.5), obs=y)
    >>> y = torch.tensor(1.0)
    >>> mode = AutoLaplaceApproximation(model, init_loc_fn=pp.init_to_fan_in)
    >>> svi = SVI(model, mode, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    >>> losses = [svi.step(y) for _ in range(300)]
    >>> guide = pp.laplace_approximation(mode, y)
    >>> elbo = pp.symmetrized_elbo(model, guide, y, num_samples=20, progress=False)

    :param mode: a guide that has been trained; by :func:`fit` under ``module_local_params=True``,
        where ``SVI.step`` fails at it.
    :param args: arguments of the model; ``kwargs`` likewise.
    :param symmetry: as for :class:`AutoSymmetrized`; discovered by default.
    :param estimator: likewise; by default :class:`ImportanceSampled`, since the Gaussian has
        dependent sites.
    :returns: a guide whose base, an ``AutoMultivariateNormal``, has nothing left to train.
    :raises TypeError: if it is another kind of guide.
    :raises ValueError: if the guide has not been trained, or is not at a mode: if the Hessian has
        directions of no or negative curvature.
    """
    if not isinstance(mode, AutoLaplaceApproximation):
        raise TypeError(
            f"mode must be an AutoLaplaceApproximation, but is a {type(mode).__name__}: train one, "
            "or give any other guide to AutoSymmetrized"
        )
    if mode.prototype_trace is None:
        raise ValueError("the AutoLaplaceApproximation has not run yet: train it to a mode first")
    base = _gaussian_at(mode, args, kwargs)
    return AutoSymmetrized(
        base, symmetry, estimator=estimator or ImportanceSampled(_NUM_PERMUTATIONS)
    )


def _gaussian_at(mode: AutoLaplaceApproximation, args: Any, kwargs: Any) -> AutoMultivariateNormal:
    try:
        with LogProbShapes():  # Pyro does not look at them here.
            gaussian: AutoMultivariateNormal = mode.laplace_approximation(*args, **kwargs)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not in its stubs
        raise ValueError(
            "the Hessian of the negative log joint is not positive definite where the "
            "AutoLaplaceApproximation is, so that this is no mode: train it longer, from another "
            "start (init_loc_fn=pp.init_to_fan_in), or give parameters without curvature a prior"
        ) from error
    return gaussian
