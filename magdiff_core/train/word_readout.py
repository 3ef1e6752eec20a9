"""Keeps the words of a prompt apart while the text encoder learns.

What no loss asks for yet, an encoder forgets: before the model could make anything of a direction, "right" and "up" had become
almost the same vector (a distance of 1.1 where two colours had 13), and then there was little left to learn from. So each token
has to tell its word to a throw-away head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.vocabulary import SPECIAL


class WordReadout(nn.Module):
    """Scores `[B, L, words]` of tokens `[B, L, D]`: their products with a direction for each word. Directions have length 1,
    so that the scores can only grow with the tokens."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(words, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, F.normalize(self.directions, dim=1))

    def loss(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Mean cross entropy over the words of the prompts; `ids [B, L]` with padding. 0 when all prompts are empty."""
        is_word = ids >= len(SPECIAL)
        if not is_word.any():
            return tokens.new_zeros(())
        return F.cross_entropy(self(tokens.float())[is_word], ids[is_word])
