"""A training inside ComfyUI: its progress bar with pictures, its Cancel button, and where it keeps its files."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from .folders import new_file

EXAMPLE = "my-adapter.safetensors"
PREVIEW = 512
AUTO = "auto"

__all__ = ["AUTO", "InterruptProcessingException", "TrainingProgress", "chosen_precision", "training_places"]


class TrainingProgress:
    """The node's bar, first over the clips that are encoded, then over the steps. Each call stops when the user pressed Cancel."""

    def __init__(self) -> None:
        self._bar = None
        self._total = 0
        self._at = 0

    def encoded(self, done: int, total: int) -> None:
        self._move(done, total)

    def step(self, step: int, total: int) -> None:
        self._move(step, total)

    def picture(self, sheet: Tensor) -> None:
        """Show a picture `[H, W, 3]` in 0..1 on the node."""
        from PIL import Image

        shown = Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())
        if self._bar is not None:
            self._bar.update_absolute(self._at, self._total, ("JPEG", shown, PREVIEW))

    def _move(self, at: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self._bar is None or total != self._total:
            self._bar, self._total = comfy.utils.ProgressBar(total), total
        self._at = at
        self._bar.update_absolute(at, total)


def chosen_precision(precision: str, device: torch.device) -> str:
    """ "no", "bf16" or "fp16"; for "auto" what the device is fast in."""
    if precision != AUTO:
        return precision
    if comfy.model_management.should_use_bf16(device):
        return "bf16"
    return "fp16" if comfy.model_management.should_use_fp16(device) else "no"


def training_places(file_name: str) -> tuple[Path, Path]:
    """The adapter's file in `models/magdiff`, and the folder in ComfyUI's output for the state and pictures of its training.

    Raises ValueError for a name that is no plain .safetensors name, or that of a file that this training did not make.
    """
    target = new_file(file_name, EXAMPLE)
    folder = Path(folder_paths.get_output_directory(), "magdiff_training", target.stem)
    if target.exists() and not (folder / "state.pt").is_file():
        raise ValueError(f"{target} exists and no training in {folder} made it: choose another file_name")
    return target, folder
