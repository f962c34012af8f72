"""Processes that start at once, as copies of one that has imported what they need.

A process of its own costs seconds of imports, which are the same for all of them. The one that is
copied runs nothing but these imports; what is sent to the copies is pickled, as everywhere.
"""

import multiprocessing
from multiprocessing import forkserver

import pytest

_METHOD = "forkserver"
_IMPORTS = ["pyro_perm", "torch._dynamo"]  # The optimizers' first step imports the compiler.


def context():
    """Where processes come from; skips the test on systems that have no such copies."""
    if _METHOD not in multiprocessing.get_all_start_methods():
        pytest.skip(f"multiprocessing has no {_METHOD} here")
    found = multiprocessing.get_context(_METHOD)
    found.set_forkserver_preload(_IMPORTS)
    forkserver.ensure_running()  # Others that set imports of theirs come too late.
    return found
