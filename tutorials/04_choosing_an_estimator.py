# %% [markdown]
# # Choosing an estimator
#
# Everything this package computes rests on one number, the mutual information `I(g; w)` of weights
# and permutation: it is what symmetrization adds to the ELBO. Its definition has a sum over `n!`
# permutations, so it is estimated. This tutorial shows which estimators see it, which have a
# gradient worth following, and which may be reported.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

import pyro_perm as pp

pyro.settings.set(module_local_params=True)  # Guides of one class do not share parameters.
plt.rcParams.update({"figure.dpi": 100, "font.size": 11, "figure.constrained_layout.use": True})

# %% [markdown]
# A network with tanh units, of any widths, and a guide for it. How far the units of the guide
# overlap is set by the standard deviation `scale` of `q`, against means that stay the same.

# %%
pyro.set_rng_seed(0)
x = torch.randn(30, 2)
y = torch.sin(2 * x[:, 0]) + 0.3 * torch.randn(30)


def network(*widths):
    sizes = list(pairwise((2, *widths, 1)))

    def model(x, y):
        for depth, (inputs, units) in enumerate(sizes):
            weight = dist.Normal(0.0, inputs**-0.5).expand([units, inputs]).to_event(2)
            bias = dist.Normal(0.0, 1.0).expand([units]).to_event(1)
            x = torch.tanh(x) if depth else x
            x = x @ pyro.sample(f"w{depth}", weight).T + pyro.sample(f"b{depth}", bias)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x.squeeze(-1), 0.3), obs=y)

    return model


def untrained_guide(*widths, scale, estimator=None):
    pyro.set_rng_seed(1)
    base = AutoNormal(network(*widths), init_loc_fn=pp.init_to_fan_in, init_scale=scale)
    guide = pp.AutoSymmetrized(base, estimator=estimator, permute=False)
    guide(x, y)  # Finds the symmetry.
    return guide


# %% [markdown]
# ## Uniform permutations see no more than `log K`
#
# `InfoNCE(K)` is the paper's estimator: `K - 1` uniform permutations beside the true one. Its value
# cannot exceed `log K`, while `I` grows with the width like `log n!`. Where we ask for no method
# `mutual_information` sums small groups exactly, and brackets large ones.

# %%
widths = [2, 4, 8, 16, 32, 64]
information, info_nce = [], {32: [], 1000: []}
for width in widths:
    guide = untrained_guide(width, scale=0.3)
    pyro.set_rng_seed(2)
    information.append(pp.mutual_information(guide, x, y, num_samples=30, progress=False))
    for num, values in info_nce.items():
        pyro.set_rng_seed(2)  # The same draws of the weights.
        bound = pp.mutual_information(
            guide, x, y, num_samples=30, estimator=pp.InfoNCE(num), progress=False
        )
        values.append(bound.lower)

print("width   log n!   I(g; w)            InfoNCE 32   InfoNCE 1000")
for row in zip(widths, information, info_nce[32], info_nce[1000], strict=True):
    width, exact, *bounds = row
    interval = f"[{exact.lower:.2f}, {exact.upper:.2f}]"
    print(f"{width:5d} {exact.log_order:8.1f}   {interval:17s} {bounds[0]:11.2f} {bounds[1]:14.2f}")

# %%
figure, axes = plt.subplots(figsize=(5, 3.4))
axes.plot(widths, [i.log_order for i in information], "k:", label=r"$\log n!$")
axes.plot(widths, [i.lower for i in information], "o-", label="$I(g; w)$, certified")
for num, values in info_nce.items():
    axes.plot(widths, values, "o-", label=f"InfoNCE, K = {num}")
axes.set(xscale="log", yscale="log", xlabel="hidden units n", ylabel="nats")
axes.set_xticks(widths, widths)
axes.minorticks_off()
axes.set_yticks([1, 10, 100], ["1", "10", "100"])
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# To see the 122 nats of 64 units, `K` would have to be `e^122`.
#
# ## Where the gradient is
#
# Training follows the gradient, so that is what to compare. With 12 units the exact one is known. A
# symmetrized guide's trace carries `log q^G(w) - log q(w)` at a site whose name begins
# with `log_ratio_symmetrized`; we average it over 100 draws, the same for each estimator, and
# differentiate with respect to all means and scales of the guide.

# %%
SCALES = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0]
ESTIMATORS = {
    "Bethe": pp.Bethe(),
    "InfoNCE K=32": pp.InfoNCE(32),
    "ImportanceSampled K=32": pp.ImportanceSampled(32),
}


def information_and_gradient(estimator, scale):
    guide = untrained_guide(12, scale=scale, estimator=estimator)
    pyro.set_rng_seed(2)
    with pyro.plate("draws", 100, dim=-2):
        trace = poutine.trace(guide).get_trace(x, y)
    (site,) = (name for name in trace.nodes if name.startswith("log_ratio_symmetrized"))
    estimate = -trace.nodes[site]["fn"].log_factor.mean()
    gradient = torch.autograd.grad(estimate, list(guide.parameters()), materialize_grads=True)
    return estimate.item(), torch.cat([part.flatten() for part in gradient])


estimates = {name: [] for name in ("Exact", *ESTIMATORS)}
cosines, errors = ({name: [] for name in ESTIMATORS} for _ in range(2))
for scale in SCALES:
    value, truth = information_and_gradient(pp.Exact(), scale)
    estimates["Exact"].append(value)
    for name, estimator in ESTIMATORS.items():
        value, gradient = information_and_gradient(estimator, scale)
        estimates[name].append(value)
        cosines[name].append(torch.cosine_similarity(gradient, truth, 0).item())
        errors[name].append(((gradient - truth).norm() / truth.norm()).item())

print("scale of q                   " + "".join(f"{scale:7g}" for scale in SCALES))
for title, table in (
    ("estimate of I (nats)", estimates),
    ("cosine with exact gradient", cosines),
    ("relative error of gradient", errors),
):
    print(title)
    for name, row in table.items():
        print(f"  {name:27s}" + "".join(f"{value:7.2f}" for value in row))

# %%
figure, (top, bottom) = plt.subplots(2, 1, figsize=(5, 5.4), sharex=True)
for name, row in estimates.items():
    style = (
        {"color": "black", "linestyle": "--", "zorder": 3} if name == "Exact" else {"marker": "o"}
    )
    top.plot(SCALES, row, label=name, **style)
for row in errors.values():
    bottom.plot(SCALES, row, "o-")
top.set(ylabel="estimate of I (nats)")
bottom.set(
    xscale="log",
    yscale="log",
    ylim=(0.003, 2),
    xlabel="standard deviation of q (units overlap to the right)",
    ylabel="relative error of gradient",
)
bottom.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
bottom.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
bottom.minorticks_off()
figure.legend(loc="outside upper center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# Where units are apart InfoNCE is `log 32` whatever the weights, and has no gradient; it works only
# where there is little left to gain. `Bethe` is exact on blocks of up to 10 units that overlap, and
# above that nearly right, as its gradient is: here within .2 nats, on either side.
# `ImportanceSampled` has the right value, and a noisy gradient.
#
# A larger version is `python benchmarks/gradient_quality.py`, and what the gradient is worth in
# training is in tutorial 8 and `python benchmarks/training_gain.py`.
#
# ## What to report
#
# `Bethe` is no bound, and is refused as a certificate:

# %%
guide = untrained_guide(50, scale=0.3)
try:
    pp.mutual_information(guide, x, y, estimator=pp.Bethe())
except ValueError as error:
    print(error)

# %% [markdown]
# The others bound one side or both, and the other side is 0 or `log |G|`. Without `estimator=`,
# several compete on either side, and the result says which one gave it.


# %%
def report(title, guide, estimator=None):
    pyro.set_rng_seed(2)
    result = pp.mutual_information(guide, x, y, num_samples=32, estimator=estimator, progress=False)
    print(f"{title}, log |G| = {result.log_order:.1f}")
    print(f"  {result.lower:6.1f} +- {result.lower_standard_error:.1f}  {result.lower_method}")
    print(f"  {result.upper:6.1f} +- {result.upper_standard_error:.1f}  {result.upper_method}")
    return result


single = {
    str(estimator): report(f"50 units, {estimator or 'by default'}", guide, estimator)
    for estimator in (pp.InfoNCE(1000), pp.LeaveOneOut(1000), pp.ImportanceSampled(64), None)
}

# %% [markdown]
# With one hidden layer the interval is usually closed. Two coupled layers are harder: a gap can
# remain where the units differ, but not by the first layer alone.

# %%
coupled = {
    scale: report(f"12-12 units, scale {scale}", untrained_guide(12, 12, scale=scale))
    for scale in (0.6, 0.3)
}

# %% [markdown]
# Report both ends, their standard errors, and `log |G|`. The bounds hold in expectation: the
# standard error is what chance adds to an end, the distance of the ends is what the methods cannot
# tell, and only the first shrinks with more samples. Compare two guides by `symmetrized_elbo`,
# never by the training loss, which is on no side of the truth with `Bethe`.
#
# ## In short
#
# | to | use | because |
# |---|---|---|
# | train | `Bethe()`, the default | dense, nearly exact gradient, no sampling |
# | train up to 16 units exactly | `Exact()` | the sum itself |
# | train on a bound | `ImportanceSampled(K)` | bounds `I` from below, but noisier |
# | repeat the paper | `InfoNCE(K)` | the paper's estimator, at most `log K` |
# | bound `I` from above likewise | `LeaveOneOut(K)` | its counterpart, equally loose |
# | report `I` | `mutual_information(guide, ...)` | certified, the best of several bounds |
# | report `ELBO(q^G)` | `symmetrized_elbo(model, guide, ...)` | the same, from the same draws |
