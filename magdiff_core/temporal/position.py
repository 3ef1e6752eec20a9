"""Sinusoidal frame positions, sine and cosine interleaved (released VidRD and MagDiff code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frame_positions(frames: int, channels: int, device=None, dtype: torch.dtype = torch.float32) -> Tensor:
    """`[F, C]` with `[p, 2i] = sin(p * 10000^(-2i/C))` and `[p, 2i+1] = cos(same)`, p = 0 .. F-1.

    Computed in float32 and cast last. `channels` must be even.
    """
    position = torch.arange(frames, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / channels))
    angle = position * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).to(dtype)
