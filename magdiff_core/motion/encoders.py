"""The condition encoders of ReVideo: E_c (content), E_m (motion) and the body of H (paper section 3.3; released code).

The paper has "three sub-blocks of convolution and downsampling". The released code, which this follows, has a first convolution,
three pairs of a plain and a strided one, and a last one; SiLU after each but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

WIDTHS = (16, 32, 96, 256)
CONTENT_CHANNELS = 3
"""The source video in -1 .. 1 with -1 inside of the edit region."""
MOTION_CHANNELS = 2
"""(dy, dx) in pixels."""
REGION_CHANNELS = 2
"""The edit region (1 = may change) and a plane of the time t."""


class ConditionEncoder(nn.Module):
    """`[F, in_channels, 8 h, 8 w]` -> `[F, out_channels, h, w]`: three halvings.

    The last convolution starts at zero in training (released code), so that an untrained encoder changes nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = WIDTHS,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            return operations.Conv2d(inputs, outputs, 3, stride=stride, padding=1, dtype=dtype, device=device)

        self.conv_in = conv(in_channels, widths[0])
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.ModuleList(layer for narrow, wide in pairs for layer in (conv(narrow, narrow), conv(narrow, wide, 2)))
        self.conv_out = conv(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = silu(self.conv_in(x))
        for block in self.blocks:
            x = silu(block(x))
        return self.conv_out(x)
