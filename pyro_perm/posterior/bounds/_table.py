"""How results print."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH = 100


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        name: of the figure.
        value: in nats.
        error: its standard error.
        remark: such as the method that it comes from.
    """

    name: str
    value: float
    error: float
    remark: str = ""


def table(log_order: float, num_samples: int, rows: Sequence[Row], skipped: str) -> str:
    """Figures in line, and what was not tried."""
    names = [row.name for row in rows]
    values = [f"{row.value + 0.0:.2f}" for row in rows]
    errors = [f"{row.error:.2f}" for row in rows]
    wide = [max(map(len, column)) for column in (names, values, errors)]
    lines = [f"{num_samples} samples, in nats; log |G| = {log_order:.2f}"]
    for name, value, error, row in zip(names, values, errors, rows, strict=True):
        figure = f"{value:>{wide[1]}} +- {error:>{wide[2]}}"
        lines.append(f"  {name:<{wide[0]}} {figure}  {row.remark}".rstrip())
    if skipped:
        lines += textwrap.wrap(
            f"skipped: {skipped}", _WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("   ".join([name.ljust(widths[0]), *right]).rstrip())
    return lines
