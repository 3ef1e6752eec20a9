"""What SVD is told of the edited first frame, as the released ReVideo scripts tell it."""

from __future__ import annotations

import logging

import comfy.clip_vision
import comfy.sd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..motion.resolution import BUDGETS, CUSTOM, same_but_for_rounding, working_size
from .checks import check_finite

log = logging.getLogger("magdiff")

FPS_OFFSET = 1
"""Core embeds fps - 1, the released scripts fps as given."""
NOISE_SCALE = 0.5
"""The released scripts add their noise to pixels in -1 .. 1; here pixels are in 0 .. 1."""
LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8


def image_conditioning(
    clip_vision: comfy.clip_vision.ClipVisionModel,
    vae: comfy.sd.VAE,
    edited_frame: Tensor,
    resolution: str,
    width: int,
    height: int,
    frames: int,
    fps: int,
    motion_bucket_id: int,
    augmentation_level: float,
    seed: int,
) -> tuple[list, list, Tensor]:
    """Positive, negative, and the empty latent `[F, 4, h, w]`.

    `edited_frame`: `[1, H, W, 3]` in 0 .. 1, stretched to the size of the clip; a longer batch gives its first picture. The image
    encoder sees all of it, squashed to a square. `resolution`: one of `BUDGETS`, or "custom" for `width` x `height`.
    `augmentation_level`: standard deviation of the noise on the picture in -1 .. 1, drawn by `seed`. The negative has neither
    picture nor embedding, only the numbers. A size that changes the shape of the picture by more than rounding explains is logged.
    Raises ValueError for a picture that holds NaN or infinity.
    """
    check_finite("edited_frame", edited_frame)
    picture = edited_frame[:1, :, :, :3].float().movedim(-1, 1)
    if resolution != CUSTOM:
        width, height = working_size(picture.shape[-1], picture.shape[-2], BUDGETS[resolution])
    given_height, given_width = picture.shape[-2:]
    if not same_but_for_rounding((width, height), (given_width, given_height)):
        log.warning(
            "edited_frame of %dx%d is stretched to %dx%d, another shape: choose a resolution that keeps the shape, or width and "
            "height near it",
            given_width,
            given_height,
            width,
            height,
        )
    if (given_height, given_width) != (height, width):
        picture = interpolate(picture, (height, width), mode="bicubic", antialias=True, align_corners=False)
    pixels = picture.clamp(0.0, 1.0).movedim(1, -1)
    embedding = clip_vision.encode_image(pixels, crop=False).image_embeds.unsqueeze(0)
    if augmentation_level > 0.0:
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        pixels = pixels + NOISE_SCALE * augmentation_level * noise.to(pixels)
    latent = vae.encode(pixels)
    numbers = {"fps": fps + FPS_OFFSET, "motion_bucket_id": motion_bucket_id, "augmentation_level": augmentation_level}
    positive = [[embedding, {**numbers, "concat_latent_image": latent}]]
    negative = [[torch.zeros_like(embedding), {**numbers, "concat_latent_image": torch.zeros_like(latent)}]]
    empty = torch.zeros(frames, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return positive, negative, empty
