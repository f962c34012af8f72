"""Scripts in two processes, as `torchrun` starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
RANKS = 2

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this build of torch has no gloo",
)


def torchrun(script, *arguments):
    """Run a script in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), str(script), *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def require_killed(done, rank, code):
    """That a run ended with an error which names the process that died."""
    assert done.returncode != 0
    failure = done.stderr.split("Root Cause")[-1].replace(" ", "")
    assert f"rank:{rank}(" in failure and f"exitcode:{code}" in failure
