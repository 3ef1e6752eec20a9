"""Colours of an edited clip brought back to those of its source, measured where nothing was edited."""

from __future__ import annotations

import torch
from torch import Tensor

NO_MATCH = "none"
SOURCE = "source"
COLOUR_MATCHES = (NO_MATCH, SOURCE)

LOWEST_GAIN, HIGHEST_GAIN = 0.5, 2.0
"""A larger change of contrast is no drift: it would come from a region too flat to measure."""
FLAT = 1e-3
"""Standard deviation under which a region counts as flat; only its mean is matched then."""


def match_colours(frames: Tensor, source: Tensor, edit_region: Tensor) -> Tensor:
    """Frames whose colours outside of the edit region have the mean and the standard deviation of the source there.

    Each channel of each frame gets one gain and one offset, which act on the whole frame: so the edit follows what happened to the
    rest. A frame that lies in the region altogether stays as it is.

    `frames`, `source`: `[F, H, W, C]` in 0 .. 1. `edit_region`: `[1 or F, H, W]`, 1 = may change, cut at one half. The result is
    clamped to 0 .. 1.
    """
    matched = frames.clone()
    for index, (frame, wanted) in enumerate(zip(frames, source, strict=True)):
        outside = edit_region[min(index, len(edit_region) - 1)] < 0.5
        if not outside.any():
            continue
        found, target = frame[outside].double(), wanted[outside].to(frame.device).double()
        spread, target_spread = found.std(0, correction=0), target.std(0, correction=0)
        gain = torch.where(spread > FLAT, target_spread / spread.clamp(min=FLAT), 1.0).clamp(LOWEST_GAIN, HIGHEST_GAIN)
        offset = target.mean(0) - gain * found.mean(0)
        matched[index] = (frame.double() * gain + offset).clamp(0.0, 1.0).to(frame)
    return matched
