"""The data sets of the demo, by name; needs none of what loads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and the number of hidden units that suits it."""

    loader: str
    classification: bool
    width: int


SOURCES = {
    "diabetes": Source("load_diabetes", classification=False, width=50),
    "wine": Source("load_wine", classification=True, width=50),
    "digits": Source("load_digits", classification=True, width=100),
    "breast_cancer": Source("load_breast_cancer", classification=True, width=50),
}
