"""Spatiotemporal Adaptive Fusion Module (ReVideo section 3.3, eq. for f_c): content and motion weighed by place and time.

The paper: f_c = E_c(c_con) * Gamma + E_m(c_mot) * (1 - Gamma) with Gamma = H(M, t). In the released code H gives w, the weight of
*motion*, so Gamma = 1 - w; Gamma has a value for each channel; and a plain 3 x 3 convolution follows the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .encoders import REGION_CHANNELS, WIDTHS, ConditionEncoder

SAFM = "safm"
DIRECT_SUM = "direct sum"
NO_TIME = "no time"
FUSION_MODES = (SAFM, DIRECT_SUM, NO_TIME)
"""The fusion, and the two that the paper's ablation compares it with."""


class SpatiotemporalAdaptiveFusion(nn.Module):
    """H with its sigmoid, and the fusion. The edit region is 1 where the video may change."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = WIDTHS,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()
        self.weight_encoder = ConditionEncoder(REGION_CHANNELS, channels, widths, operations, dtype, device)
        self.conv_final = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def gamma(self, edit_region: Tensor, t: Tensor) -> Tensor:
        """Gamma, the weight of content, `[F, C, h, w]` in 0 .. 1.

        `edit_region`: `[F, 1, 8 h, 8 w]`, 1 = may change. `t`: scalar or `[F]`, 0.25 ln sigma (not sigma, not a step number).
        """
        plane = t.to(edit_region).reshape(-1, 1, 1, 1).expand_as(edit_region)
        # Gamma = 1 - sigmoid(H), written without the cancellation.
        return torch.sigmoid(-self.weight_encoder(torch.cat((edit_region, plane), 1)))

    def fuse(self, content: Tensor, motion: Tensor, gamma: Tensor) -> Tensor:
        """f_c `[F, C, h, w]` from E_c(c_con), E_m(c_mot) and Gamma of the same shape (or one that broadcasts)."""
        return self.conv_final(torch.lerp(motion, content, gamma.expand_as(motion)))

    def forward(self, content: Tensor, motion: Tensor, edit_region: Tensor, t: Tensor, mode: str = SAFM) -> Tensor:
        """f_c `[F, C, h, w]`; arguments as in `gamma` and `fuse`.

        `mode` "direct sum": E_c + E_m with nothing after it, as before the fusion was trained. "no time": t is 0 (sigma 1) at
        all steps. Raises ValueError for any other mode.
        """
        if mode == DIRECT_SUM:
            return content + motion
        if mode not in FUSION_MODES:
            raise ValueError(f"fusion is {mode!r}, choose one of: {', '.join(FUSION_MODES)}")
        return self.fuse(content, motion, self.gamma(edit_region, torch.zeros_like(t) if mode == NO_TIME else t))
