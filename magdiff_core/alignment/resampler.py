"""The image-token Resampler: a few learned queries read all patch tokens of the image encoder (released MagDiff code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


class ResamplerAttention(nn.Module):
    """Attention of the queries to patch tokens and queries together; no biases."""

    def __init__(self, width: int, heads: int, inner: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.heads = heads
        self.norm1 = operations.LayerNorm(width, eps=NORM_EPS, **options)
        self.norm2 = operations.LayerNorm(width, eps=NORM_EPS, **options)
        self.to_q = operations.Linear(width, inner, bias=False, **options)
        self.to_kv = operations.Linear(width, 2 * inner, bias=False, **options)
        self.to_out = operations.Linear(inner, width, bias=False, **options)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        normed_queries = self.norm2(queries)
        q = self.to_q(normed_queries)
        k, v = self.to_kv(torch.cat((self.norm1(tokens), normed_queries), dim=1)).chunk(2, dim=-1)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Patch tokens `[N, L, image_width]` -> image tokens `[N, queries, token_width]`.

    Parameter names are those of the released `enclip_projector`. Real size: image_width 1280, width 1024, 4 layers,
    12 heads of 64, 16 queries, token_width 1024, feed-forward 4 times the width.
    """

    def __init__(
        self,
        image_width: int,
        width: int,
        token_width: int,
        queries: int,
        depth: int,
        heads: int,
        inner: int,
        feed_forward: int,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.latents = nn.Parameter(torch.zeros(1, queries, width, **options))
        self.proj_in = operations.Linear(image_width, width, **options)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    ResamplerAttention(width, heads, inner, operations=operations, **options),
                    nn.Sequential(
                        operations.LayerNorm(width, eps=NORM_EPS, **options),
                        operations.Linear(width, feed_forward, bias=False, **options),
                        nn.GELU(),
                        operations.Linear(feed_forward, width, bias=False, **options),
                    ),
                )
            )
            for _ in range(depth)
        )
        self.proj_out = operations.Linear(width, token_width, **options)
        self.norm_out = operations.LayerNorm(token_width, eps=NORM_EPS, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens` `[N, L, image_width]`, any float dtype -> `[N, queries, token_width]`, same dtype."""
        x = self.proj_in(tokens)
        queries = self.latents.to(x).expand(x.shape[0], -1, -1)
        for attention, feed_forward in self.layers:
            queries = queries + attention(x, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))
