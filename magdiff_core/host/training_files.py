"""Files that a training starts from, and its device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import torch

from .adapter_file import load_adapter_file
from .attach import apply_adapter
from .call import PartStrengths
from .load_checkpoint import load_checkpoint
from .loaded_checkpoint import LoadedCheckpoint


def load_for_training(base: Path, adapter: Path | None = None, clip_vision: Path | None = None) -> LoadedCheckpoint:
    """A checkpoint with an adapter on it, where one is named, and an image encoder of another file.

    Raises FileNotFoundError and ValueError naming the file.
    """
    for file in (base, adapter, clip_vision):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    loaded = load_checkpoint(str(base))
    if loaded.model is None:
        raise ValueError(f"{base} holds no UNet to train on: name a whole checkpoint")
    if adapter is not None:
        loaded = replace(loaded, model=apply_adapter(loaded.model, load_adapter_file(str(adapter)), PartStrengths()))
    if clip_vision is not None:
        encoder = comfy.clip_vision.load(str(clip_vision))
        if encoder is None:
            raise ValueError(f"{clip_vision} holds no image encoder that ComfyUI knows: CLIP-ViT-H-14 goes with SD2.1")
        loaded = replace(loaded, clip_vision=encoder)
    return loaded


def training_device() -> torch.device:
    """The device that ComfyUI computes on."""
    return comfy.model_management.get_torch_device()
