"""Scripts in two processes, as `torchrun` starts them."""

import runpy
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import pytest
import torch
from processes import context

ROOT = Path(__file__).parents[1]
RANKS = 2

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this build of torch has no gloo",
)


def torchrun(script, *arguments):
    """Run a script in two processes, under the agent of `torchrun --standalone`."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory() as logs, _own_signals():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=RANKS,
            run_id="test",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method=context().get_start_method(),
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
        )
        command = [str(script), *map(str, arguments)]
        try:
            elastic_launch(config, _run)(command)
            failure = ""
        except ChildFailedError as error:
            failure = str(error)
        stdout, stderr = (
            "".join(path.read_text() for path in sorted(Path(logs).rglob(f"{stream}.log")))
            for stream in ("stdout", "stderr")
        )
    return CompletedProcess(command, 1 if failure else 0, stdout, stderr + failure)


def _run(command):
    """What ``python *command`` does."""
    torch.set_num_threads(1)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        # Those who lose their connection to a process that died give way to it: the agent, however
        # seldom it gets to look, names whom it finds first, and ends the others.
        time.sleep(60)
        raise


@contextmanager
def _own_signals():
    """Leaves to this process its handlers of signals, where the agent puts its own."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {each: signal.getsignal(each) for each in signals}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


def require_killed(done, rank, code):
    """That a run ended with an error which names the process that died."""
    assert done.returncode != 0
    failure = done.stderr.split("Root Cause")[-1].replace(" ", "")
    assert f"rank:{rank}(" in failure and f"exitcode:{code}" in failure
