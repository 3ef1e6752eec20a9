"""OpenCV, and pictures as it takes them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch


def import_cv2() -> ModuleType:
    """OpenCV, or an error that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Subject Segment needs OpenCV for GrabCut and tracking: run `pip install opencv-python-headless` in "
            "ComfyUI's Python environment and restart."
        ) from error
    return cv2


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """Float RGB `[H, W, 3]` in 0..1 to uint8 RGB."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def working_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most `longest`; never scaled up."""
    scale = min(1.0, longest / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))
