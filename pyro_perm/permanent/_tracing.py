"""Whether ``torch.jit.trace`` is looking, which records no decision that depends on the data."""

import torch


def is_tracing() -> bool:
    """Whether operations are being recorded."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]
