"""Temp-Conv: four convolutions along time after a ResBlock (VidRD; MagDiff supplement, Fig. D; released code).

The same layer as in ModelScope, VideoCrafter and DynamiCrafter; those run it on a single frame, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .clip_norm import clip_rows_to_frames, frames_to_clip_rows

GROUPS = 32
NORM_EPS = 1e-5
LAYERS = 4


class TempConvLayer(nn.Module):
    """GroupNorm over the clip -> SiLU -> convolution of three frames, zero-padded in time."""

    def __init__(self, channels: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.norm = operations.GroupNorm(GROUPS, channels, eps=NORM_EPS, dtype=dtype, device=device)
        # A (3, 1) kernel over [F, h * w] is the (3, 1, 1) convolution of the paper, at more than twice the speed on a CPU.
        self.conv = operations.Conv2d(channels, channels, (3, 1), padding=(1, 0), dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.silu(self.norm(x)))


class TempConv(nn.Module):
    """`x + strength * convolutions(x)` on frames `x` `[clips * F, C, h, w]`.

    `on_one_frame`: whether a clip of one frame passes the convolutions; otherwise the layer is the identity for it.
    """

    def __init__(self, channels: int, on_one_frame: bool = False, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.on_one_frame = on_one_frame
        self.layers = nn.ModuleList(
            TempConvLayer(channels, operations=operations, dtype=dtype, device=device) for _ in range(LAYERS)
        )

    def forward(self, x: Tensor, frames: int, strength: float = 1.0) -> Tensor:
        """Residual sum, same shape and dtype as `x`. For F = 1 as the weights were trained: MagDiff and VidRD skip it."""
        if frames == 1 and not self.on_one_frame:
            return x
        h = frames_to_clip_rows(x, frames)
        for layer in self.layers:
            h = layer(h)
        h = clip_rows_to_frames(h, *x.shape[-2:])
        return x + h if strength == 1.0 else torch.add(x, h, alpha=strength)
