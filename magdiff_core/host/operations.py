"""The layers that our modules are made of in ComfyUI: its own ones with casting, and a faster Linear for float32 on a CPU."""

from __future__ import annotations

import comfy.ops
import torch
from torch import Tensor
from torch.nn.functional import conv2d

LEAST_ROWS = 512
"""Below it, laying out the weights anew takes longer than is won."""
PICTURES = 16
"""PyTorch hands a convolution of one pixel to oneDNN for this many pictures or more, with a single thread."""


class HostOperations(comfy.ops.manual_cast):
    """As `comfy.ops.manual_cast`."""

    class Linear(comfy.ops.manual_cast.Linear):
        """For many rows of float32 on a CPU the product is computed as a convolution of one pixel.

        PyTorch gives a Linear to MKL, which leaves half of the arithmetic of CPUs of other makers unused, and a convolution to
        oneDNN, which does not: measured 1.3 to 2 times as fast on AMD EPYC. The results differ by rounding only.
        """

        def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
            rows = x.numel() // x.shape[-1]
            if rows < LEAST_ROWS or rows % PICTURES or not self._is_plain(x):
                return super().forward(x, *args, **kwargs)
            pictures = x.reshape(PICTURES, rows // PICTURES, 1, x.shape[-1]).permute(0, 3, 1, 2)
            out = conv2d(pictures, self.weight[:, :, None, None], self.bias)
            return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.weight.shape[0])

        def _is_plain(self, x: Tensor) -> bool:
            """Whether nothing is to be cast, moved or patched, and all is float32 on a CPU that oneDNN knows."""
            weight = self.weight
            return (
                x.device.type == weight.device.type == "cpu"
                and x.dtype == weight.dtype == torch.float32
                and (self.bias is None or self.bias.dtype == torch.float32)
                and not (self.weight_function or self.bias_function)
                and torch.backends.mkldnn.is_available()
            )
