"""Motion module: the temporal transformer of AnimateDiff, after the spatial layers of a block.

Source: AnimateDiff (arXiv 2307.04725, section 4.2) and its released code. Unlike ModelScope's transformer it knows the number of
each frame: the position is added to the input of both attentions, and does not stay in the stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .clip_norm import clip_group_norm
from .temporal_transformer import FrameBlock, TemporalTransformer


class MotionBlock(FrameBlock):
    """Two self-attentions over F that see positions, and a feed-forward, on tokens `[N, F, C]`."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`positions` `[F, C]` in the dtype of `x`."""
        x = x + self.attn1(self.norm1(x) + positions)
        x = x + self.attn2(self.norm2(x) + positions)
        return x + self.ff(self.norm3(x))


class MotionModule(TemporalTransformer):
    """`x + strength * proj_out(blocks(proj_in(GroupNorm(x))))` on frames `x` `[clips * F, C, h, w]`.

    The GroupNorm runs on each frame, as in AnimateDiff's own code; with `clip_norm` over the clip, as `diffusers` runs it.
    """

    block = MotionBlock
    clip_norm = False

    def forward(self, x: Tensor, frames: int, positions: Callable[[int, Tensor], Tensor], strength: float = 1.0) -> Tensor:
        """Shaped and typed as `x`. `positions(C, like)` gives `[F, C]` in the dtype of `like`. One frame is not skipped."""
        h = clip_group_norm(self.norm, x, frames) if self.clip_norm else self.norm(x)
        clips = x.shape[0] // frames
        h = h.flatten(2).unflatten(0, (clips, frames)).permute(0, 3, 1, 2).flatten(0, 1)
        h = self.proj_in(h)
        position = positions(h.shape[-1], h)
        for block in self.blocks:
            h = block(h, position)
        h = self.proj_out(h).unflatten(0, (clips, -1)).permute(0, 2, 3, 1).reshape(x.shape)
        return torch.add(x, h, alpha=strength)


class MotionModuleOverClip(MotionModule):
    """A motion module whose GroupNorm takes its statistics over the clip."""

    clip_norm = True
