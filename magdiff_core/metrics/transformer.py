"""The pre-norm transformer that CLIP and DINO share, and their three towers, as plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of one tower. `positions`: tokens, class token included; `patch`: pixels a side (0 for text); `output`: width after
    the projection (0: none). `activation`: "gelu" or "quick_gelu" (x sigmoid(1.702 x), OpenAI's CLIP)."""

    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    activation: str
    epsilon: float
    patch: int = 0
    output: int = 0
    vocabulary: int = 0

    @property
    def side(self) -> int:
        """Pixels a side of the pictures that a picture tower takes."""
        return round((self.positions - 1) ** 0.5) * self.patch


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, sizes: TowerSizes, operations=nn) -> None:
        super().__init__()
        self.heads, self.activation = sizes.heads, sizes.activation
        self.norm1 = operations.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.qkv = operations.Linear(sizes.width, 3 * sizes.width)
        self.out = operations.Linear(sizes.width, sizes.width)
        self.norm2 = operations.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.fc1 = operations.Linear(sizes.width, sizes.hidden)
        self.fc2 = operations.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """`[n, tokens, width]` -> the same."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        hidden = self.fc1(self.norm2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.activation == "quick_gelu" else F.gelu(hidden)
        return x + self.fc2(hidden)


class PictureTower(nn.Module):
    """A vision transformer: class token of the last layer, normalised, and projected where the model has a projection.

    CLIP normalises the tokens before the first block too and has no bias in the patch embedding; DINO neither.
    """

    def __init__(self, sizes: TowerSizes, norm_before: bool, patch_bias: bool, operations=nn) -> None:
        super().__init__()
        self.sizes = sizes
        self.patches = operations.Conv2d(3, sizes.width, sizes.patch, sizes.patch, bias=patch_bias)
        self.class_token = nn.Parameter(torch.empty(sizes.width))
        self.positions = nn.Parameter(torch.empty(sizes.positions, sizes.width))
        self.norm_before = operations.LayerNorm(sizes.width, eps=sizes.epsilon) if norm_before else nn.Identity()
        self.blocks = nn.ModuleList(Block(sizes, operations) for _ in range(sizes.depth))
        self.norm = operations.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.projection = operations.Linear(sizes.width, sizes.output, bias=False) if sizes.output else nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures `[n, 3, side, side]` -> features `[n, output or width]`."""
        tokens = self.patches(pictures).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(tokens), 1, -1), tokens), 1) + self.positions
        tokens = self.norm_before(tokens)
        for block in self.blocks:
            tokens = block(tokens, causal=False)
        return self.projection(self.norm(tokens[:, 0]))


class TextTower(nn.Module):
    """CLIP's text transformer: the state at the end-of-text token, normalised and projected."""

    def __init__(self, sizes: TowerSizes, operations=nn) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = operations.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Parameter(torch.empty(sizes.positions, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes, operations) for _ in range(sizes.depth))
        self.norm = operations.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.projection = operations.Linear(sizes.width, sizes.output, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids `[n, length]`, length at most `positions` -> features `[n, output]`.

        End of text is the first place with the highest id of the row; what follows cannot act, the attention is causal.
        """
        state = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            state = block(state, causal=True)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        end = places.masked_fill(tokens != tokens.amax(1, keepdim=True), tokens.shape[1]).amin(1)
        return self.projection(self.norm(state[torch.arange(len(tokens), device=tokens.device), end]))
