"""The size at which a clip is sampled (released ReVideo scripts)."""

from __future__ import annotations

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
