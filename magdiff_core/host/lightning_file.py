"""Read a checkpoint that PyTorch Lightning saved: weights beside objects of the trainer, without building any of these.

Weights-only loading refuses a file for a single name that it does not know. Here the trainer's own classes are replaced by empty
ones, which take whatever is given to them and do nothing; any other unknown name is refused as before.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .tensor_file import load_tensors

TRAINER_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf")
"""Packages whose classes may be named in a file; none of them is imported."""


def load_checkpoint_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `tensor_file.load_tensors`, also for files that name the trainer's classes. Raises ValueError in the same cases."""
    try:
        return load_tensors(path)
    except ValueError as error:
        placeholders = _placeholders(path)
        if not placeholders:
            raise
        with torch.serialization.safe_globals(placeholders):
            try:
                return load_tensors(path)
            except ValueError:
                # What the first attempt said names the file's real content.
                raise error from None


def _placeholders(path: str | os.PathLike) -> list[type]:
    """An empty class for each name that weights-only loading does not know; none unless all belong to a trainer."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path))
    except Exception:
        # No zip file of torch at all: safetensors, or damaged.
        return []
    if not all(name.split(".")[0] in TRAINER_PACKAGES for name in unknown):
        return []
    return [_placeholder(*name.rsplit(".", 1)) for name in unknown]


def _placeholder(module: str, name: str) -> type:
    def take_anything(self, *args, **kwargs) -> None:
        pass

    return type(name, (), {"__module__": module, "__init__": take_anything, "__setstate__": take_anything})
