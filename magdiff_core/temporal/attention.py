"""Self-attention along time: each pixel attends to itself in all frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 2**15
"""Rows of one attention call. Fused kernels on a GPU fail beyond 65535, which a clip of 1024 x 576 pixels comes near to."""


def two_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q `[..., Lq, width]`, k and v `[..., Lk, width]`, one row a head.

    The queries are scaled, not the far larger products.
    """
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of `[..., F, width]`, one row a head.

    As two products on a CPU in half precision: for so few keys torch's own kernel takes two to three times as long there, with
    the backward pass.
    """
    if q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16):
        return two_products(q, k, v)
    return nn.functional.scaled_dot_product_attention(q, k, v)


def frame_attention(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values side by side `[N, F, 3C]` -> `[N, F, C]`; every frame attends to all F, without a mask."""
    rows, frames, width = qkv.shape
    q, k, v = qkv.reshape(rows, frames, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    parts = zip(*(states.split(ROWS_AT_ONCE) for states in (q, k, v)), strict=True)
    out = [attend(*part) for part in parts]
    return (out[0] if len(out) == 1 else torch.cat(out)).transpose(1, 2).reshape(rows, frames, -1)
