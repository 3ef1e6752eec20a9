"""Checks and conversions at the door of the segmentation: pictures, masks, OpenCV arrays."""

from __future__ import annotations

import logging
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

log = logging.getLogger("magdiff")


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


def clean_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """Bring IMAGE input to float `[F, H, W, 3]` on the CPU; values are left as they are.

    Grey pictures are repeated to three channels, an alpha channel is dropped; both are logged.

    Args:
        images: `[F, H, W, C]`, C 1, 3 or 4.
        name: input name for error messages.

    Raises:
        ValueError: wrong shape, no frames, under 8 pixels a side, NaN or infinity.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} must be [frames, height, width, 1, 3 or 4], got {list(images.shape)}.")
    frames, height, width, channels = images.shape
    if frames == 0 or height < 8 or width < 8:
        raise ValueError(f"{name} has {frames} frames of {width}x{height} pixels: at least 1 frame of 8x8 is needed.")
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite: check the node before (a broken VAE decode in half "
            "precision is the usual cause)."
        )
    if channels == 1:
        log.info("%s is grey: repeated to 3 channels.", name)
        images = images.expand(-1, -1, -1, 3)
    elif channels == 4:
        log.info("%s has an alpha channel, which is dropped; wire its mask to subject_mask to use it.", name)
        images = images[..., :3]
    return images.float().cpu()


def fit_mask(mask: torch.Tensor, name: str, frames: int, height: int, width: int) -> torch.Tensor:
    """Bring a MASK to float `[1 or frames, height, width]` in 0..1 on the CPU; fractions are kept.

    A mask of another size is resized (bilinear; averaged when it gets smaller) and that is logged.

    Args:
        mask: `[H, W]`, `[K, H, W]` or `[K, 1, H, W]`.
        name: input name for messages.
        frames: F; K must be 1 or F.
        height: wanted, in pixels.
        width: wanted, in pixels.

    Raises:
        ValueError: wrong shape or count, NaN or infinity.
    """
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    elif mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"{name} must be a mask [frames, height, width], got {list(mask.shape)}.")
    if mask.shape[0] not in (1, frames):
        raise ValueError(f"{name} has {mask.shape[0]} frames, the images have {frames}: give one mask or {frames}.")
    if not torch.isfinite(mask).all():
        raise ValueError(f"{name} holds NaN or infinite values: check the node that made it.")
    mask = mask.float().cpu().clamp(0, 1)
    if mask.shape[1:] != (height, width):
        log.info("%s is %dx%d, resized to %dx%d.", name, mask.shape[2], mask.shape[1], width, height)
        mask = F.interpolate(mask.unsqueeze(1), (height, width), mode="bilinear", antialias=True, align_corners=False)[:, 0].clamp(
            0, 1
        )
    return mask


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """Float RGB `[H, W, 3]` in 0..1 to uint8 RGB."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def working_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) scaled down so that the longer side is at most `longest`; never scaled up."""
    scale = min(1.0, longest / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))
