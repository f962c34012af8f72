"""Random programs: models built from random operations, to look for unsound proposals."""

from __future__ import annotations

import examples.steps_of_memory
import examples.steps_of_programs  # noqa: F401  (importing fills the table)
from examples.random_program import Program, data

__all__ = ["Program", "data"]
