"""Read a weights file without running anything that it may hold."""

from __future__ import annotations

import os
import re

import comfy.utils
from torch import Tensor


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and metadata of a safetensors file, or of a pickle read by weights-only loading (no metadata).

    Entries that are no tensors (counters of a trainer) are left out. Raises ValueError naming the file when it is missing,
    cut short, no weights file, or a pickle that wants to run code.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}")
    try:
        state_dict, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:
        raise ValueError(_reason(path, error)) from error
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} holds a {type(state_dict).__name__}, not weights by name: it is no checkpoint")
    tensors = _tensors(state_dict)
    if not tensors:
        # Parts by name (IP-Adapter's .bin): {"image_proj": {...}, "ip_adapter": {...}}
        parts = {name: _tensors(part) for name, part in state_dict.items() if isinstance(name, str) and isinstance(part, dict)}
        tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    if not tensors:
        raise ValueError(f"{path} holds no weights: {len(state_dict)} entries, none of them a tensor")
    return tensors, metadata or {}


def _tensors(entries: dict) -> dict[str, Tensor]:
    return {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _reason(path: str, error: Exception) -> str:
    # torch's own text advises to switch its safety off: it is not passed on.
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted:
        return (
            f"{path} is a pickle that wants to run or build {wanted[1]}, which a weights file need not: it was not loaded. "
            "Get the weights as safetensors, or have somebody whom you trust convert it"
        )
    with open(path, "rb") as file:
        size, is_bare_pickle = os.path.getsize(path), file.read(1) == b"\x80"
    what = "a pickle of a kind that is not read because it may hold code, or " if is_bare_pickle else ""
    return (
        f"cannot read {path} ({size} bytes): it is {what}cut short, damaged, or not a weights file. "
        "Compare its size with the source and fetch it again"
    )
