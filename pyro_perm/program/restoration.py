"""Running programs, and leaving everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from pyro_perm.program.isolation import WriteLog
from pyro_perm.program.modules import modules_among


@contextmanager
def restored(*programs: Any) -> Iterator[WriteLog]:
    """Leave random states, buffers, parameters and modes as they were.

    What the programs write in place, such as the running moments of batch normalization, is
    restored at the end, if the first run of each is made inside of the log that this context
    returns. Parameters and buffers that come into being inside stay.

    :param programs: models, guides, and their arguments.
    """
    modules = list(dict.fromkeys(m for root in modules_among(programs) for m in root.modules()))
    modes = [module.training for module in modules]
    buffers = [
        dict(module.named_buffers(recurse=False, remove_duplicate=False)) for module in modules
    ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = pyro.util.get_rng_state()
    log = WriteLog()
    try:
        with torch.random.fork_rng(devices):
            yield log
    finally:
        pyro.util.set_rng_state(states)
        log.restore()
        for module, training, known in zip(modules, modes, buffers, strict=True):
            module.training = training
            for name, buffer in known.items():
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
