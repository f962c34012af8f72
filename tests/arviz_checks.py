"""What must run on an exported posterior, under either generation of ArviZ; needs no torch."""

import arviz as az
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

GENERATION = int(az.__version__.split(".")[0])

# What ArviZ 0.23 does with the newest matplotlib and pandas.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame:Warning"),
]


def elpd(loo) -> float:
    """Expected log predictive density, as ``az.loo`` or its kin have it."""
    return float(loo.elpd if GENERATION else loo.elpd_loo)


def check_ranking(better, worse):
    """Leave-one-out estimates, and the order that they give."""
    ranking = az.compare({"worse": worse, "better": better})
    assert list(ranking.index) == ["better", "worse"]
    az.plot_compare(ranking)
    loo = az.loo(better, pointwise=True)
    assert elpd(loo) > elpd(az.loo(worse))
    az.plot_khat(loo)


def check_summary(data, names):
    """Means and standard deviations of the variables."""
    summary = az.summary(data, kind="stats", var_names=names, round_to="none")
    values = np.concatenate(
        [data["posterior"][n].mean(("chain", "draw")).values.flat for n in names]
    )
    np.testing.assert_allclose(summary["mean"].astype(float), values, atol=1e-12)


def check_plots(data, names, coords):
    """Plots of the posterior, of a few variables, and of its predictions."""
    az.plot_forest(data, var_names=names)
    az.plot_pair(data, var_names=names, coords=coords)
    if GENERATION:
        az.plot_ppc_dist(data)
    else:
        az.plot_ppc(data)
    matplotlib.pyplot.close("all")
