"""Sliding windows over a long clip (ReVideo, "long video editing"): which frames each covers, and how they are joined.

Windows follow each other with `overlap` common frames. Every window has the full length that the model was made for: where the
clip ends earlier, the last window is moved back to end with it, so it shares more frames with the one before. The first frame of
a window is known when the window starts, from the windows before it; with one common frame it is the last one of the window
before, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HOLD = "hold"
CROSS_FADE = "cross-fade"
OVERLAP_MODES = (HOLD, CROSS_FADE)
"""What becomes of common frames: those of the window before stay, or one goes over into the other."""


@dataclass(frozen=True)
class Window:
    """Frames `start` to `stop` (not included) of a clip. The first `shared` of them belong to earlier windows too."""

    index: int
    start: int
    stop: int
    shared: int

    @property
    def frames(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def common(self) -> slice:
        """The frames of the clip that earlier windows have made."""
        return slice(self.start, self.start + self.shared)


def plan_windows(frames: int, length: int, overlap: int) -> list[Window]:
    """Windows of `length` that cover a clip of `frames`, in order.

    Raises ValueError, with numbers, for an overlap that is not from 1 to `length` - 1, and for a clip shorter than a window.
    """
    if not 1 <= overlap < length:
        raise ValueError(f"overlap is {overlap}, window_frames {length}: give at least 1 and at most {length - 1} common frames")
    if frames < length:
        raise ValueError(f"source_frames has {frames} frames, a window {length}: give at least {length}, or shorter windows")
    starts = [*range(0, frames - length, length - overlap), frames - length]
    windows = []
    done = 0
    for index, start in enumerate(starts):
        windows.append(Window(index, start, start + length, done - start if index else 0))
        done = start + length
    return windows


def fade_weights(shared: int) -> Tensor:
    """Share `[shared]` of the new window in common frames: 0 in the first, its reference, in equal steps to 1 behind them."""
    return torch.arange(shared) / max(1, shared)


def join(clip: Tensor, made: Tensor, window: Window, overlap_mode: str) -> None:
    """Put the frames of a window, `made` `[length, H, W, C]`, into `clip` `[F, H, W, C]` in place."""
    clip[window.start + window.shared : window.stop] = made[window.shared :]
    if overlap_mode == CROSS_FADE:
        common = clip[window.common]
        weights = fade_weights(window.shared).to(common).view(-1, 1, 1, 1)
        common += (made[: window.shared].to(common) - common) * weights
