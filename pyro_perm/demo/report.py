"""The demo's table, in plain text."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_perm.demo.evaluation import Evaluation
from pyro_perm.demo.training import Fit


def table(fits: Mapping[str, Fit], evaluations: Mapping[str, Evaluation], error: str) -> str:
    """One column a guide; ``+-`` is a standard error.

    :param error: what the held-out error is called.
    """
    columns = [["", *_row_names(error)]]
    columns += [[name, *_figures(fits[name], evaluations[name])] for name in fits]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for name, *figures in zip(*columns, strict=True):
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("   ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _row_names(error: str) -> list[str]:
    return [
        "ELBO(q), nats",
        "ELBO(q^G), lower bound",
        "ELBO(q^G), upper bound",
        "I(g; w), lower bound",
        "I(g; w), upper bound",
        "log |G|",
        "test log-likelihood, nats a point",
        error,
        "seconds a step",
    ]


def _figures(fit: Fit, evaluation: Evaluation) -> list[str]:
    elbo, information = evaluation.elbo, evaluation.elbo.mutual_information
    return [
        f"{elbo.base:.1f} +- {elbo.base_standard_error:.1f}",
        f"{elbo.lower:.1f} +- {elbo.lower_standard_error:.1f}",
        f"{elbo.upper:.1f} +- {elbo.upper_standard_error:.1f}",
        f"{information.lower:.1f} +- {information.lower_standard_error:.1f}",
        f"{information.upper:.1f} +- {information.upper_standard_error:.1f}",
        f"{elbo.log_order:.1f}",
        f"{evaluation.test_log_likelihood:.4f}",
        f"{evaluation.test_error:.4f}",
        f"{fit.seconds_per_step:.4f}",
    ]
