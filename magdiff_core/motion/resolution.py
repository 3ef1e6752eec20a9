"""The size at which a clip is sampled (released ReVideo scripts)."""

from __future__ import annotations

import math

CUSTOM = "custom"
BUDGETS = {
    "1 MP (as released)": 1024 * 1024,
    "0.6 MP": 1024 * 576,
    "0.25 MP": 512 * 512,
    "0.16 MP (as trained)": 512 * 320,
}
"""Pixels of a frame. The released scripts always scale to about 1 MP, up or down; the model was trained at 512 x 320."""
MULTIPLE = 64


def working_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """(width, height) near `pixels` in all, in about the shape of `width` x `height`, each side a multiple of 64."""
    scale = (pixels / (width * height)) ** 0.5
    return tuple(max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))


def same_but_for_rounding(edited: tuple[int, int], source: tuple[int, int]) -> bool:
    """Whether an edit of (width, height) `edited` can show the whole of frames of `source`.

    Models scale both sides by one factor and round each to a multiple, of 64 pixels for ReVideo, of 8 to 32 for others. The edit's
    own sides tell which multiple it can have been. So for one factor k both |k w - edited width| and |k h - edited height| are at
    most half of that multiple; k taken out, this is the inequality below. What fails it is a crop, or another clip.
    """
    (width, height), (source_width, source_height) = edited, source
    multiple = math.gcd(width, height, MULTIPLE)
    return 2 * abs(width * source_height - height * source_width) <= multiple * (source_width + source_height)
