"""How the published VideoCrafter and DynamiCrafter models were trained: what their weights do not tell (their released
configurations)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..config import ALL_FRAMES, GREY_PICTURE, TOKENS_OF_PICTURE, AdapterConfig, ImageEncoderConfig, ScheduleConfig

VIDEOCRAFTER1 = "VideoCrafter1 image-to-video"
VIDEOCRAFTER2 = "VideoCrafter2"
DYNAMICRAFTER_256 = "DynamiCrafter-256"
DYNAMICRAFTER = "DynamiCrafter-512, -1024 or interpolation"

HEAD_WIDTH = 64
FRAMES = 16
TOKENS_PER_FRAME = 16
FIRST_HEADS = 8
"""Heads of the transformer after the first convolution: its width over this is the width of every head."""
BASE_SCALE = 0.7
WIDE_BASE_SCALE = 0.3
"""Scale of latents in strong noise; the second is that of DynamiCrafter-1024."""
RATES = {VIDEOCRAFTER1: 8.0, VIDEOCRAFTER2: 28.0, DYNAMICRAFTER_256: 3.0, DYNAMICRAFTER: 24.0}
"""Default of the frame rate; for DynamiCrafter-256 it is a stride."""
WIDE_RATE = 10.0
"""Default of DynamiCrafter-1024."""

VARIANTS = {
    "DynamiCrafter-512 or interpolation": (BASE_SCALE, RATES[DYNAMICRAFTER]),
    "DynamiCrafter-1024": (WIDE_BASE_SCALE, WIDE_RATE),
}
"""What a user may say of a file whose weights do not tell: scale of latents and frame rate."""

_log = logging.getLogger("magdiff")


def settings(layout: str, adapter: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> AdapterConfig:
    """The configuration of a model of `layout` with these weights; `state_dict` may hold its noise schedule."""
    schedule = _schedule(layout, state_dict)
    rate = WIDE_RATE if layout == DYNAMICRAFTER and schedule.base_scale < 0.5 else RATES[layout]
    encoder, heads, frames = ImageEncoderConfig(layer="last", crop=False, channels="rgb"), AdapterConfig.projector_heads, FRAMES
    if "projector.latents" in adapter:
        encoder = ImageEncoderConfig(adapter["projector.proj_in.weight"].shape[1], "last", False, "rgb")
        heads = max(1, adapter["projector.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH)
        if layout in (DYNAMICRAFTER, DYNAMICRAFTER_256):
            frames = max(1, adapter["projector.latents"].shape[1] // TOKENS_PER_FRAME)
    return AdapterConfig(
        base=f"the UNet of the same file ({layout}; SD2.1 shape)",
        prediction="v" if layout == DYNAMICRAFTER else "eps",
        frames=frames,
        projector_heads=heads,
        clip_norm=False,
        temporal_on_one_frame=True,
        temporal_head_width=adapter["temporal.transformer.input_blocks.0.0.proj_in.weight"].shape[0] // FIRST_HEADS,
        image_tokens=TOKENS_OF_PICTURE,
        tokens_per_frame=TOKENS_PER_FRAME if layout in (DYNAMICRAFTER, DYNAMICRAFTER_256) else 0,
        negative_picture=GREY_PICTURE,
        subject_frames=ALL_FRAMES,
        fps=rate,
        image_encoder=encoder,
        schedule=schedule,
        licence="research and non-commercial use (VideoCrafter's readme; see the model's card)",
        trained_from=f"released {layout}",
    )


def as_variant(layout: str, config: AdapterConfig, variant: str) -> AdapterConfig:
    """`config` of a model of `layout`, as the user says it is (a key of `VARIANTS`). Raises ValueError for another layout."""
    if layout != DYNAMICRAFTER:
        raise ValueError(f"variant is {variant!r}, but this file is {layout}, of which there is one only: set it back to automatic")
    base_scale, rate = VARIANTS[variant]
    return replace(config, fps=rate, schedule=replace(config.schedule, base_scale=base_scale))


def _schedule(layout: str, state_dict: Mapping[str, Tensor]) -> ScheduleConfig:
    zero_snr = layout == DYNAMICRAFTER
    if layout == DYNAMICRAFTER_256:
        return ScheduleConfig()
    scales = state_dict.get("scale_arr")
    if scales is None or scales.is_meta:
        if layout == DYNAMICRAFTER:
            _log.warning(
                "this DynamiCrafter file lacks scale_arr, by which the 1024-pixel model (latents scaled to %g) is told from the "
                "512-pixel and interpolation models (%g): it is taken for one of the latter. The original model.ckpt holds it; "
                "else choose the variant in Load MagDiff Checkpoint",
                WIDE_BASE_SCALE,
                BASE_SCALE,
            )
        return ScheduleConfig(zero_terminal_snr=zero_snr, base_scale=BASE_SCALE)
    base_scale = float(scales[-1])
    # The line that falls ends where the scale stays the same.
    turning_step = int((scales > base_scale + 1e-6).sum()) + 1
    return ScheduleConfig(zero_terminal_snr=zero_snr, base_scale=round(base_scale, 6), turning_step=turning_step)
