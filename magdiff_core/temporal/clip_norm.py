"""Group normalisation with statistics over a whole clip.

Source: released MagDiff and VidRD code. Their ResBlocks, Temp-Convs and the last norm see `[clips, C, F, h, w]`, so mean
and variance run over F, h and w. A UNet that holds frames in its batch would normalise each frame alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def frames_to_clip_rows(x: Tensor, frames: int) -> Tensor:
    """`[clips * F, C, h, w]` -> `[clips, C, F, h * w]`: one row a clip, time beside space (a copy when F > 1)."""
    rows, channels = x.shape[:2]
    return x.reshape(rows // frames, frames, channels, -1).transpose(1, 2)


def clip_rows_to_frames(x: Tensor, height: int, width: int) -> Tensor:
    """`[clips, C, F, h * w]` -> `[clips * F, C, h, w]`, the inverse of `frames_to_clip_rows`."""
    clips, channels, frames = x.shape[:3]
    return x.transpose(1, 2).reshape(clips * frames, channels, height, width)


def clip_group_norm(norm: Callable[[Tensor], Tensor], x: Tensor, frames: int) -> Tensor:
    """Apply the GroupNorm layer `norm` to frames `x` `[clips * F, C, h, w]` with statistics over each clip.

    The layer itself is called, so that weight casting, offloading and patches of the host keep working.
    """
    if frames == 1:
        return norm(x)
    return clip_rows_to_frames(norm(frames_to_clip_rows(x, frames)), *x.shape[-2:])
