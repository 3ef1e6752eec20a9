"""Temp-Attn: self-attention along time inside a transformer block, between cross-attention and feed-forward.

Source: VidRD and released MagDiff code. The frame position is added to the residual stream and stays there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attend

NORM_EPS = 1e-5


class TempAttn(nn.Module):
    """`z = x + PE; z + strength * to_out(attention over F of LayerNorm(z))` on tokens `[clips * F, tokens, C]`."""

    def __init__(self, channels: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.norm = operations.LayerNorm(channels, eps=NORM_EPS, dtype=dtype, device=device)
        # One product for q, k and v: three small ones cost more on every device.
        self.to_qkv = operations.Linear(channels, 3 * channels, bias=False, dtype=dtype, device=device)
        self.to_out = operations.Linear(channels, channels, dtype=dtype, device=device)

    def forward(self, x: Tensor, frames: int, heads: int, positions: Tensor, strength: float = 1.0) -> Tensor:
        """The stream after Temp-Attn, shaped and typed as `x`.

        `positions` is `[F, C]` in the dtype of `x`. Position j of every token attends to all F frames of the same token.
        With F = 1 the attention is skipped and only `positions[0]` is added, as in the released code.
        """
        rows, tokens, channels = x.shape
        z = (x.reshape(rows // frames, frames, tokens, channels) + positions[:, None]).reshape(x.shape)
        if frames == 1:
            return z
        q, k, v = (
            self.to_qkv(self.norm(z))
            .reshape(rows // frames, frames, tokens, 3, heads, channels // heads)
            .permute(3, 0, 2, 4, 1, 5)
            .flatten(1, 2)
            .unbind(0)
        )
        h = attend(q, k, v)
        h = h.reshape(rows // frames, tokens, heads, frames, -1).permute(0, 3, 1, 2, 4).reshape(x.shape)
        h = self.to_out(h)
        return z + h if strength == 1.0 else torch.add(z, h, alpha=strength)
