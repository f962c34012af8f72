"""The demo's command line; asks for the demo's packages only when it is to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyro_perm as pp
from pyro_perm.demo.sources import SOURCES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo, or say what it needs.

    :param arguments: of the command line; None reads them from there.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        from pyro_perm.demo.experiment import compare
    except ModuleNotFoundError as error:
        if error.name not in {"matplotlib", "sklearn"}:
            raise
        sys.exit(f"The demo needs {error.name}: python -m pip install 'pyro_perm[demo]'")
    try:  # Training takes minutes.
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: {error.strerror}: {options.output}")
    width = options.width or SOURCES[options.data].width
    compare(
        options.data, width=width, steps=options.steps, seed=options.seed, output=options.output
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_perm",
        description="Fit a Bayesian neural network with AutoNormal and with AutoSymmetrized.",
    )
    add = parser.add_argument
    add("--data", choices=SOURCES, default="diabetes", help="data set; %(default)s")
    add("--width", type=_positive, help="hidden units; 100 for digits, 50 otherwise")
    add("--steps", type=_positive, default=4000, help="training steps a guide; %(default)s")
    add("--seed", type=_seed, default=0, help="of initial values and draws; %(default)s")
    add("--output", type=Path, default=Path("pyro_perm_output"), help="folder; %(default)s")
    add("--version", action="version", version=pp.__version__)
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**32 - 1, but is {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value
