# %% [markdown]
# # Comparing posteriors with ArviZ
#
# A net of three hidden units is small enough for NUTS, so we can ask which approximation is the
# better one. `AutoNormal`, `AutoSymmetrized` and NUTS are fitted to the same data and exported by
# `to_arviz`, after which everything is ArviZ alone.

# %%
import warnings

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

import pyro_perm as pp

pyro.set_rng_seed(0)
pyro.settings.set(module_local_params=True)  # Guides of one class do not share parameters.
warnings.filterwarnings("ignore", ".*Pareto")  # ArviZ notes the same in a column of its table.


# %% [markdown]
# ## One model, three posteriors


# %%
def model(x, y):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.5).expand([3, 1]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
    f = torch.relu(x @ w1.mT + b1) @ w2.mT
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), 0.3), obs=y)


def observe(x):
    return torch.sin(2 * x).squeeze(-1) + 0.3 * torch.randn(len(x))


x = torch.linspace(-1.5, 1.5, 25).unsqueeze(-1)
y = observe(x)


# %%
def train(guide, steps=800):
    pyro.set_rng_seed(1)
    adam = ClippedAdam({"lr": 0.03, "lrd": 0.05 ** (1 / steps)})
    pp.fit(model, guide, (x, y), steps=steps, optimizer=adam, progress=False)
    return guide


plain = train(AutoNormal(model, init_loc_fn=pp.init_to_fan_in))
symmetrized = train(pp.AutoSymmetrized(AutoNormal(model, init_loc_fn=pp.init_to_fan_in)))

# %% [markdown]
# NUTS is slow even here. Its chains may sit in different equivalent modes, or hop between them.

# %%
kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, full_mass=True, max_tree_depth=5)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "num_chains")  # With few cores they run one by one.
    mcmc = MCMC(kernel, num_samples=200, warmup_steps=100, num_chains=2, disable_progbar=True)
pyro.set_rng_seed(2)
mcmc.run(x, y)

# %% [markdown]
# ## Weights are compared modulo their order
#
# R-hat of the weights tells little: chains in different modes disagree about every weight, though
# they may agree about the function. Alignment moves all draws to one mode. Where chains as short as
# these disagree about the function too, as they do with other seeds, they have not converged, and
# no alignment helps.

# %%
prediction = pp.predict(model, mcmc, x, y, progress=False)
diagnostics = pp.convergence_diagnostics(
    mcmc.get_samples(group_by_chain=True),
    symmetrized.symmetry,
    {"f": prediction.means.unflatten(0, (2, -1))},
)
for space in ("original", "aligned", "functions"):
    print(f"{space:10s} largest R-hat {getattr(diagnostics, space).largest_rhat:.2f}")

# %% [markdown]
# ## Held-out data
#
# Which posterior predicts best? The log predictive density of fresh data tells. It is scaled to as
# many points as there are in `x`, for the leave-one-out estimates below to be seen beside.

# %%
x_new = 3 * torch.rand(1000, 1) - 1.5
y_new = observe(x_new)
held_out = {}
for name, posterior in {"AutoNormal": plain, "AutoSymmetrized": symmetrized, "NUTS": mcmc}.items():
    new = pp.predict(model, posterior, x_new, y_new, progress=False)
    held_out[name] = len(x) * new.log_predictive_density.mean().item()
    print(f"{name:15s} {held_out[name]:6.1f} nats")

# %% [markdown]
# NUTS does. With so few units a factorized Gaussian is far from the truth, symmetrized or not, and
# both guides make much the same predictions.

# %% [markdown]
# ## Export

# %%
posteriors = {
    "AutoNormal": pp.to_arviz(model, plain, x, y, progress=False),
    "AutoSymmetrized": pp.to_arviz(model, symmetrized, x, y, progress=False),
    "NUTS": pp.to_arviz(model, mcmc, x, y, progress=False),
}

# %% [markdown]
# ## From here on: ArviZ
#
# `az.compare` ranks by leave-one-out cross-validation, which needs no fresh data, but re-weighs the
# draws of each posterior. That fails where few draws carry all of the weight: the column `warning`
# (`diag_elpd` in ArviZ 1) marks it, by a high Pareto k. It does for both guides, whose estimates
# are 20 nats and more below their held-out figures, and count more parameters (`p_loo`) than the
# net has. So it prefers one of two guides that predict alike: believe the last column, which we
# add.

# %%
comparison = az.compare(posteriors)
comparison["held_out"] = [held_out[name] for name in comparison.index]
print(comparison.round(1).to_string())
az.plot_compare(comparison)
plt.show()

# %% [markdown]
# Under the posterior all units have the same marginals, and so they have under `AutoSymmetrized`.
# `AutoNormal` picks one of the equivalent modes, and NUTS has not been to all of them in so few
# steps: that was the R-hat of the original weights. Draws of a guide are independent, so it has no
# R-hat to look at, and `kind="stats"` leaves it out.

# %%
for name, posterior in posteriors.items():
    print(name, az.summary(posterior, var_names=["w2"], kind="stats"), sep="\n")
    az.plot_forest(posterior, var_names=["w2"], combined=True)
    plt.title(name)
plt.show()

# %% [markdown]
# The files open wherever ArviZ does: `posteriors["NUTS"].to_netcdf("nuts.nc")`.
