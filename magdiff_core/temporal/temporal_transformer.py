"""The temporal transformer of ModelScope, VideoCrafter and DynamiCrafter: after a spatial transformer, and once after the first
convolution.

Source: released code. GroupNorm over the clip, then for each pixel a transformer over its F values: two self-attentions (the second
stands where text would, and reads no text) and a gated feed-forward. No positions, no mask: the order of frames comes from the
convolutions along time alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .attention import frame_attention
from .clip_norm import frames_to_clip_rows

GROUPS = 32
GROUP_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


class FrameAttention(nn.Module):
    """Self-attention over F of tokens `[N, F, C]`."""

    def __init__(self, channels: int, heads: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.heads = heads
        self.to_qkv = operations.Linear(channels, 3 * channels, bias=False, dtype=dtype, device=device)
        self.to_out = operations.Linear(channels, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(frame_attention(self.to_qkv(x), self.heads))


class GatedFeedForward(nn.Module):
    """Linear -> value and gate -> value * GELU(gate) -> Linear."""

    def __init__(self, channels: int, hidden: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.proj = operations.Linear(channels, 2 * hidden, dtype=dtype, device=device)
        self.out = operations.Linear(hidden, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * nn.functional.gelu(gate))


class FrameBlock(nn.Module):
    """Two self-attentions over F and a feed-forward, each with its LayerNorm and residual, on tokens `[N, F, C]`."""

    def __init__(self, channels: int, heads: int, hidden: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        for name in ("norm1", "norm2", "norm3"):
            setattr(self, name, operations.LayerNorm(channels, eps=LAYER_NORM_EPS, dtype=dtype, device=device))
        self.attn1 = FrameAttention(channels, heads, **options)
        self.attn2 = FrameAttention(channels, heads, **options)
        self.ff = GatedFeedForward(channels, hidden, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))


class TemporalTransformer(nn.Module):
    """`x + strength * proj_out(blocks(proj_in(GroupNorm(x))))` on frames `x` `[clips * F, C, h, w]`."""

    block = FrameBlock

    def __init__(
        self,
        channels: int,
        inner: int,
        heads: int,
        hidden: int,
        depth: int = 1,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.channels = channels
        self.norm = operations.GroupNorm(GROUPS, channels, eps=GROUP_NORM_EPS, **options)
        self.proj_in = operations.Linear(channels, inner, **options)
        self.blocks = nn.ModuleList(self.block(inner, heads, hidden, operations=operations, **options) for _ in range(depth))
        self.proj_out = operations.Linear(inner, channels, **options)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, torch.Size], heads_of, **options) -> TemporalTransformer:
        """The layer whose weights have these shapes; `heads_of(inner width)` gives the number of heads."""
        inner, channels = shapes["proj_in.weight"]
        hidden = shapes["blocks.0.ff.out.weight"][1]
        depth = sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in shapes)
        return cls(channels, inner, heads_of(inner), hidden, depth, **options)

    def forward(self, x: Tensor, frames: int, positions=None, strength: float = 1.0) -> Tensor:
        """Shaped and typed as `x`. `positions` is not used: this layer knows none. One frame is not skipped."""
        rows = frames_to_clip_rows(x, frames)
        clips, _, _, pixels = rows.shape
        h = self.norm(rows).permute(0, 3, 2, 1).flatten(0, 1)
        h = self.proj_in(h)
        for block in self.blocks:
            h = block(h)
        h = self.proj_out(h).unflatten(0, (clips, pixels)).permute(0, 2, 3, 1).reshape(x.shape)
        return torch.add(x, h, alpha=strength)
