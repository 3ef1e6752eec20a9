"""Frames as a node shows them below itself."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

PREVIEW_FPS = 8


def show_frames(
    frames: torch.Tensor, name: str, cls: type[io.ComfyNode], fps: float = PREVIEW_FPS
) -> ui.PreviewImage | ui.SavedImages:
    """Frames `[F, H, W, 3]` as one picture, or as a film at `fps` in the temporary folder, called by `name`."""
    if frames.shape[0] == 1:
        return ui.PreviewImage(frames, cls=cls)
    saved = ui.ImageSaveHelper.save_animated_webp(
        frames, name, io.FolderType.temp, cls, fps=fps, lossless=False, quality=80, method=0
    )
    return ui.SavedImages([saved], is_animated=True)
