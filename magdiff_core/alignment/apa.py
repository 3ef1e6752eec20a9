"""Adaptive Prompts Alignment: text and picture weighed inside cross-attention (MagDiff section 3.2, eq. 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ADAPTIVE = "adaptive"
FIXED = "fixed"
ALPHA_MAX = 3.0

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Softmax attention with merged heads: q `[N, Lq, C]`, k and v `[N, Lk, C]` -> `[N, Lq, C]`."""


@dataclass(frozen=True)
class AlphaSettings:
    """What the user asks of APA. The sliders multiply the learned weights of every layer.

    `alpha_text`, `alpha_image`: 0 .. 3, 1 = as learned. `start_percent`, `end_percent`: 0 .. 1, the part of sampling in which
    the sliders act; outside of it the learned weights act alone. `mode`: "adaptive" (eq. 4) or "fixed" (eq. 3, both learned
    weights replaced by 1). Raises ValueError for values outside these ranges, NaN, both sliders 0, or an empty range.
    """

    alpha_text: float = 1.0
    alpha_image: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    mode: str = ADAPTIVE

    def __post_init__(self) -> None:
        for name in ("alpha_text", "alpha_image"):
            value = getattr(self, name)
            if not math.isfinite(value) or not 0.0 <= value <= ALPHA_MAX:
                raise ValueError(f"{name} is {value}: choose a number from 0 to {ALPHA_MAX:g} (1 = as learned)")
        if self.alpha_text == 0.0 and self.alpha_image == 0.0:
            raise ValueError("alpha_text and alpha_image are both 0: cross-attention would be empty, raise one of them")
        if not 0.0 <= self.start_percent < self.end_percent <= 1.0:
            raise ValueError(
                f"start_percent {self.start_percent} and end_percent {self.end_percent}: "
                "start must be below end, both from 0 to 1"
            )
        if self.mode not in (ADAPTIVE, FIXED):
            raise ValueError(f"mode is {self.mode!r}: choose {ADAPTIVE!r} or {FIXED!r}")


class ImageStream(nn.Module):
    """The second stream of one cross-attention: keys and values of the image tokens, and the two learned weights.

    Queries and the output projection are the base's own. `alpha_text`, `alpha_image`: `[1]`, unconstrained, learned
    (released code: initialised 1.0 and 1.5).
    """

    def __init__(self, token_width: int, channels: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        options = {"dtype": dtype, "device": device}
        self.to_k_image = operations.Linear(token_width, channels, bias=False, **options)
        self.to_v_image = operations.Linear(token_width, channels, bias=False, **options)
        self.alpha_text = nn.Parameter(torch.ones(1, **options))
        self.alpha_image = nn.Parameter(torch.ones(1, **options))

    def key_value(self, tokens_image: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens `[N, L, token_width]` -> keys and values `[N, L, C]`."""
        return self.to_k_image(tokens_image), self.to_v_image(tokens_image)

    def weights(self, mode: str, strength: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Learned weights of text and image, `[1]` each, at part strength p: `1 + p (s_t - 1)` and `p s_i`."""
        if mode == FIXED:
            learned_text = learned_image = torch.ones(1, device=like.device, dtype=like.dtype)
        else:
            learned_text, learned_image = self.alpha_text.to(like), self.alpha_image.to(like)
        return 1.0 + strength * (learned_text - 1.0), strength * learned_image


def dual_cross_attention(
    q: Tensor,
    text: tuple[Tensor, Tensor],
    image: tuple[Tensor, Tensor] | None,
    weight_text: Tensor,
    weight_image: Tensor,
    attention: Attention,
) -> Tensor:
    """`weight_text * A(q, K_t, V_t) + weight_image * A(q, K_i, V_i)` (eq. 4), before the layer's own output projection.

    `q` `[N, Lq, C]`; `text`, `image`: (keys, values), each `[N, Lk, C]`; the weights broadcast. Two softmaxes, not one over both.
    Without image tokens the second term is an empty sum.
    """
    out = attention(q, *text) * weight_text
    if image is None:
        return out
    return torch.addcmul(out, attention(q, *image), weight_image)
