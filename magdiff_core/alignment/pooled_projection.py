"""Image tokens out of one pooled embedding of the picture (IP-Adapter without "plus")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


class PooledProjection(nn.Module):
    """Embedding `[N, 1, image_width]` -> `tokens` image tokens `[N, tokens, token_width]`: one linear layer, cut and normed.

    Source: IP-Adapter (arXiv 2308.06721, section 3.2.1) and its released code, whose names these are.
    """

    def __init__(
        self,
        image_width: int,
        token_width: int,
        tokens: int,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()
        self.proj = operations.Linear(image_width, tokens * token_width, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(token_width, eps=NORM_EPS, dtype=dtype, device=device)
        self.token_width = token_width

    def forward(self, embedding: Tensor) -> Tensor:
        return self.norm(self.proj(embedding.squeeze(1)).unflatten(-1, (-1, self.token_width)))
