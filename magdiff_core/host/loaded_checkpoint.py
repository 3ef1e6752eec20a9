"""What a checkpoint file gives to a graph."""

from __future__ import annotations

from dataclasses import dataclass

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The parts of one file, each as ComfyUI's stock nodes take it, or None where the file lacks it."""

    model: ModelPatcher | None = None
    clip: CLIP | None = None
    vae: VAE | None = None
    clip_vision: ClipVisionModel | None = None
