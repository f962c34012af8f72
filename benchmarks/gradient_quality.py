"""Gradients of the estimators of ``log q^G(w)`` against the exact one.

One layer of 14 units with 5 entries each, scales 0.5, and locs drawn from ``N(0, spread^2)``; many
draws of ``w`` in double precision. Printed are the estimate of I, and the cosine and the relative
error of its gradient with respect to all locs and scales, averaged over the draws before comparing:
what an optimizer sees over many steps.
``--figure`` saves them as a picture. Run ``python benchmarks/gradient_quality.py``.
"""

from __future__ import annotations

import argparse

import torch

import pyro_perm as pp
from pyro_perm.density.factorized import FactorizedDensity

UNITS, ENTRIES, SCALE = 14, 5, 0.5
SPREADS = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6]
ESTIMATORS: dict[str, pp.Estimator] = {
    "Bethe": pp.Bethe(),
    "InfoNCE K=32": pp.InfoNCE(32),
    "ImportanceSampled K=32": pp.ImportanceSampled(32),
}


def layer(spread: float, num: int) -> FactorizedDensity:
    """A density over one group, and draws from it, differentiable in its parameters."""
    spec, shapes = {"units": {"w": 0}}, {"w": (UNITS, ENTRIES)}
    symmetry = pp.PermutationSymmetry(spec, shapes=shapes).group
    generator = torch.Generator().manual_seed(0)
    locs = spread * torch.randn(UNITS, ENTRIES, generator=generator, dtype=torch.float64)
    scales = torch.full_like(locs, SCALE).requires_grad_()
    noise = torch.randn(num, UNITS, ENTRIES, generator=generator, dtype=torch.float64)
    values = locs.requires_grad_() + scales * noise
    return FactorizedDensity(symmetry, {"w": values}, {"w": locs}, {"w": scales}, torch.Size([num]))


def information_and_gradient(
    estimator: pp.Estimator, density: FactorizedDensity, chunk: int = 50
) -> tuple[float, torch.Tensor]:
    """Mean estimate of I, and its mean gradient."""
    leaves = [density.locs["w"], density.scales["w"]]
    total, gradient = 0.0, torch.zeros(2, UNITS, ENTRIES)
    for values in density.values["w"].split(chunk):
        part = FactorizedDensity(
            density.symmetry, {"w": values}, density.locs, density.scales, values.shape[:1]
        )
        information = -estimator.log_ratio(part)
        grads = torch.autograd.grad(information.sum(), leaves, retain_graph=True, allow_unused=True)
        grads = [
            torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
        ]
        total += information.sum().item()
        gradient += torch.stack(grads)
    num = len(density.values["w"])
    return total / num, gradient / num


def main() -> None:
    """Print the table, and draw it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--figure", help="file to save a figure to")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    rows = []
    print(f"{'spread':>6s} {'exact I':>8s}  " + "  ".join(f"{e:>24s}" for e in ESTIMATORS))
    print(" " * 16 + "  ".join(f"{'I':>8s} {'cosine':>7s} {'error':>7s}" for _ in ESTIMATORS))
    for spread in SPREADS:
        torch.manual_seed(0)
        density = layer(spread, options.draws)
        exact, truth = information_and_gradient(pp.Exact(), density)
        cells = []
        for name, estimator in ESTIMATORS.items():
            information, gradient = information_and_gradient(estimator, density)
            cosine = torch.cosine_similarity(gradient.flatten(), truth.flatten(), 0).item()
            error = ((gradient - truth).norm() / truth.norm()).item()
            rows.append((name, spread, exact, information, cosine, error))
            cells.append(f"{information:8.2f} {cosine:7.3f} {error:7.3f}")
        print(f"{spread:6.1f} {exact:8.2f}  " + "  ".join(f"{c:>24s}" for c in cells))
    if options.figure:
        draw(rows, options.figure)


def draw(rows: list[tuple[str, float, float, float, float, float]], path: str) -> None:
    """Estimates of I, cosine and relative error against the spread of the units."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    axes[0].plot(SPREADS, [row[2] for row in rows[:: len(ESTIMATORS)]], "k--", label="exact")
    for name in ESTIMATORS:
        mine = [row for row in rows if row[0] == name]
        for axis, column in zip(axes, (3, 4, 5), strict=True):
            axis.plot(SPREADS, [row[column] for row in mine], "o-", label=name)
    for axis, label in zip(
        axes,
        ("estimate of I (nats)", "cosine with exact gradient", "relative error of gradient"),
        strict=True,
    ):
        axis.set(xlabel="spread of the units' locs (scales 0.5)", ylabel=label)
    axes[2].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
