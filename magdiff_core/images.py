"""What nodes take from others, checked and brought to one form: IMAGE and MASK."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

SMALLEST_SIDE = 8
"""Pixels: one latent pixel, and what tracking can follow."""

log = logging.getLogger("magdiff")


def clean_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """Bring IMAGE input to float `[F, H, W, 3]` on the CPU; the values of opaque pixels are left as they are.

    Grey pictures are repeated to three channels. Colours are multiplied by an alpha channel, so that what is transparent turns
    black, "no subject"; both are logged. A picture with alpha was cut out by somebody: dropping the channel would bring back
    the background that was taken away, which no preview shows. Black, soft edges included, is what Subject Segment makes of
    the same picture with its alpha as subject_mask.

    Args:
        images: `[F, H, W, C]`, C 1, 3 or 4.
        name: input name for error messages.

    Raises:
        ValueError: wrong shape, no frames, under 8 pixels a side, NaN or infinity.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} has shape {list(images.shape)}: an IMAGE [frames, height, width, 3] is needed.")
    frames, height, width, channels = images.shape
    if frames == 0 or height < SMALLEST_SIDE or width < SMALLEST_SIDE:
        raise ValueError(
            f"{name} has {frames} frames of {width}x{height} pixels: at least 1 frame of {SMALLEST_SIDE}x{SMALLEST_SIDE} is needed."
        )
    bad = int((~torch.isfinite(images)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite: check the node before (a broken VAE decode in half "
            "precision is the usual cause)."
        )
    images = images.float().cpu()
    if channels == 1:
        log.info("%s is grey: repeated to 3 channels.", name)
        return images.expand(-1, -1, -1, 3)
    if channels == 4:
        log.info("%s has an alpha channel: what is transparent turns black.", name)
        return images[..., :3] * images[..., 3:]
    return images


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
