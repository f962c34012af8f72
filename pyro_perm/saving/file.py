"""A file of tensors and what they mean: safetensors, with a JSON document in its metadata.

The file is written whole or not at all. What is read is checked: its format, its version, and a
checksum of all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyro_perm._version import __version__

FORMAT = 1
_KIND, _FORMAT, _VERSION = "kind", "format", "pyro_perm"
_DOCUMENT, _CHECKSUM = "document", "sha256"


def write(
    path: str | PathLike[str], kind: str, tensors: Mapping[str, Tensor], document: Mapping[str, Any]
) -> None:
    """Write a file, in place of one that may be there.

    :param kind: what the file is, such as "guide".
    :param tensors: by name, anywhere; the file keeps their precision and not their device.
    :param document: what JSON can express.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(document)
    metadata = {
        _KIND: kind,
        _FORMAT: str(FORMAT),
        _VERSION: __version__,
        _DOCUMENT: text,
        _CHECKSUM: _checksum(text, stored),
    }
    content = save(stored, metadata)
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | PathLike[str], kind: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the document of a file, on the CPU.

    :raises FileNotFoundError: if there is none.
    :raises ValueError: if it is damaged, of another program, of another kind, or of a newer
        version; says which.
    """
    content = Path(path).read_bytes()
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is no whole file of pp.save ({error}): cut off, damaged, or another "
            "program's"
        ) from error
    metadata = _metadata_of(content)
    _require_ours(path, metadata, kind)
    text = metadata.get(_DOCUMENT, "")
    if metadata.get(_CHECKSUM) != _checksum(text, tensors):
        raise ValueError(
            f"'{path}' is damaged: its checksum is not that of what it holds. Copy it again from "
            "where it was written"
        )
    return tensors, json.loads(text)


def _metadata_of(content: bytes) -> dict[str, str]:
    """What safetensors keeps beside the tensors: its header is JSON, after its length."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _require_ours(path: Any, metadata: Mapping[str, str], kind: str) -> None:
    if not metadata.keys() >= {_KIND, _FORMAT, _VERSION}:
        raise ValueError(f"'{path}' holds tensors of another program: write one with pp.save")
    written = metadata[_FORMAT]
    if not written.isdecimal() or int(written) > FORMAT:
        raise ValueError(
            f"'{path}' was written by pyro_perm {metadata[_VERSION]} in format {written}, and this "
            f"is pyro_perm {__version__}, which reads up to format {FORMAT}: upgrade pyro_perm"
        )
    if metadata[_KIND] != kind:
        raise ValueError(f"'{path}' holds a {metadata[_KIND]}, not a {kind}")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
