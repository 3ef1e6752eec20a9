"""Frame rate, or frame stride, as a term of the time embedding (VideoCrafter and DynamiCrafter, released code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def rate_sinusoid(rate: float, channels: int, like: Tensor) -> Tensor:
    """`[1, channels]`: cosines, then sines, of `rate` at frequencies 1 .. 1/10000, as for diffusion timesteps."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=like.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = rate * frequencies
    return torch.cat((angles.cos(), angles.sin()))[None].to(like)


class FpsEmbedding(nn.Sequential):
    """Linear -> SiLU -> Linear over the sinusoid of the rate; names of the released code (`0`, `2`)."""

    def __init__(self, model_channels: int, width: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        options = {"dtype": dtype, "device": device}
        super().__init__(operations.Linear(model_channels, width, **options), nn.SiLU(), operations.Linear(width, width, **options))
        self.model_channels = model_channels

    def of(self, rate: float, like: Tensor) -> Tensor:
        """The term `[1, width]` for `rate`, in the dtype and on the device of `like`."""
        return self(rate_sinusoid(rate, self.model_channels, like))
