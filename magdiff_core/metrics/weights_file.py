"""Read the user's metric models: tensors from safetensors or weights-only files, TorchScript after an explicit yes."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger("magdiff")

_WRAPPERS = ("state_dict", "model", "teacher", "net")
"""Entries under which trainers put the weights."""


@dataclass(frozen=True)
class FileRecord:
    """Which file a number was measured with: its name and the SHA-256 of its bytes."""

    name: str
    sha256: str


def record_of(path: str | os.PathLike) -> FileRecord:
    """Name and hash of a file. Raises ValueError when there is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(path.name, digest.hexdigest())


def is_torchscript(path: str | os.PathLike) -> bool:
    """True for an archive that carries code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.match(r"[^/]+/code/", name) for name in archive.namelist())


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file or of a PyTorch file read by weights-only loading; runs no code of the file.

    The wrappings of trainers are taken off: an entry `state_dict`, `model`, `teacher` or `net`, and a common prefix `module.`.

    Raises:
        ValueError: no file, TorchScript, damaged, or holding anything but weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if is_torchscript(path):
        raise ValueError(
            f"{path.name} is TorchScript, which brings code of its own that runs when it is loaded: allow_torchscript says "
            "that you trust the file (it works for I3D and C3D only), or give the weights as safetensors"
        )
    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The text of torch advises to switch its safety off: it is not passed on.
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it wants to build {wanted[1]}, which weights need not" if wanted else "it is cut short, damaged or no weights file"
        raise ValueError(f"cannot read {path.name}: {why}. Fetch it again, or have it converted to safetensors") from error
    for _ in range(2):
        for name in _WRAPPERS:
            if isinstance(state, dict) and isinstance(state.get(name), dict):
                state = state[name]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ValueError(f"{path.name} holds no weights by name")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def load_torchscript(path: str | os.PathLike) -> torch.jit.ScriptModule:
    """A TorchScript file, on the CPU. It may run code of its own: only call this after the user's explicit yes.

    Raises:
        ValueError: not a TorchScript file, or one that this version of torch cannot read.
    """
    path = Path(path)
    if not is_torchscript(path):
        raise ValueError(f"{path.name} is no TorchScript file")
    log.warning("%s is TorchScript: code that this file brings along runs now, as allow_torchscript says.", path.name)
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"this version of torch ({torch.__version__}) cannot read {path.name}: {error}") from error
