"""High-Fidelity Alignment: a VAE pyramid of the subject, fed into the first convolution (MagDiff section 3.3).

The subject picture is encoded at three sizes (384 : 320 : 256 in the paper). The two upper latents are brought to the size of
the lowest, pass two convolutions each and are summed onto it: `z_s`. The paper concatenates `z_n` and `z_s` before the first
convolution; convolving `z_s` alone and adding the result is the same sum, and leaves the base's convolution untouched.
The released code has no pyramid, only the lowest latent: without `levels` this module does exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEVEL_RATIOS = (1.0, 1.25, 1.5)
"""Size of each pyramid level over the size of the latent that is denoised."""

FIT_MODES = ("crop", "pad", "stretch")


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Latent sizes (h, w) of the three levels for a latent of `height` x `width`, each side rounded to a whole number."""
    return [(int(height * ratio + 0.5), int(width * ratio + 0.5)) for ratio in LEVEL_RATIOS]


def resize(pictures: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize of `[N, C, H, W]` to `[N, C, height, width]`; the same tensor when nothing changes."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    # In float32, because PyTorch's antialiased resize has no half-precision kernels on the CPU.
    return nn.functional.interpolate(pictures.float(), size=(height, width), mode="bilinear", antialias=True).to(pictures)


def fit(pictures: Tensor, height: int, width: int, mode: str = "crop") -> Tensor:
    """Bring pictures `[N, H, W, 3]` in 0 .. 1 to `[N, height, width, 3]`.

    "crop": scale until both sides are covered, cut the centre. "pad": scale until both fit, fill with black, which is
    "no subject" here. "stretch": scale the sides apart. Raises ValueError for another mode.
    """
    if mode not in FIT_MODES:
        raise ValueError(f"fit is {mode!r}: choose one of {', '.join(FIT_MODES)}")
    x = pictures.movedim(-1, 1)
    source_height, source_width = x.shape[-2:]
    if mode == "stretch" or (source_height, source_width) == (height, width):
        return resize(x, height, width).clamp(0.0, 1.0).movedim(1, -1)
    pick = max if mode == "crop" else min
    scale = pick(height / source_height, width / source_width)
    x = resize(x, max(1, round(source_height * scale)), max(1, round(source_width * scale))).clamp(0.0, 1.0)
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    if mode == "crop":
        x = x[..., top : top + height, left : left + width]
    else:
        x = nn.functional.pad(x, (-left, width - x.shape[-1] + left, -top, height - x.shape[-2] + top))
    return x.movedim(1, -1)


class PyramidLevel(nn.Module):
    """conv 3x3 -> SiLU -> conv 3x3 (zero at the start of training) on an upper latent at base size."""

    def __init__(self, channels: int, hidden: int, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.conv_in = operations.Conv2d(channels, hidden, 3, padding=1, dtype=dtype, device=device)
        self.conv_out = operations.Conv2d(hidden, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, latent: Tensor) -> Tensor:
        return self.conv_out(nn.functional.silu(self.conv_in(latent)))


class SubjectBranch(nn.Module):
    """Pyramid latents -> the term that `z_s` adds to the output of the base's first convolution.

    `level`: the convolutions of the upper levels, keyed "1" and "2"; empty for weights without a pyramid. With `affinity`, `conv_z`
    takes one channel more, the first: how near the frame is to the picture (PIA, arXiv 2312.13964, section 3.2).
    """

    def __init__(
        self,
        latent_channels: int,
        model_channels: int,
        level_hidden: Sequence[int] = (),
        affinity: bool = False,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        super().__init__()
        options = {"operations": operations, "dtype": dtype, "device": device}
        self.level = nn.ModuleDict(
            {str(i): PyramidLevel(latent_channels, hidden, **options) for i, hidden in enumerate(level_hidden, start=1)}
        )
        self.affinity = affinity
        self.conv_z = operations.Conv2d(
            latent_channels + int(affinity), model_channels, 3, padding=1, bias=False, dtype=dtype, device=device
        )

    def subject_latent(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents of the three levels, lowest first, each `[N, C, h_l, w_l]`, scaled like the model's -> `z_s` `[N, C, h, w]`."""
        z_s = latents[0]
        for name, convolutions in self.level.items():
            z_s = z_s + convolutions(resize(latents[int(name)], *latents[0].shape[-2:]))
        return z_s

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """`conv_z(z_s)` `[N, model_channels, h, w]`; with `affinity` for an affinity of 0."""
        z_s = self.subject_latent(latents)
        return self.conv_z(nn.functional.pad(z_s, (0, 0, 0, 0, 1, 0)) if self.affinity else z_s)

    def affinity_term(self, like: Tensor) -> Tensor:
        """What an affinity of 1 adds to `forward`, `[1, model_channels, h, w]`, for latents `like` `[N, C, h, w]`."""
        ones, zeros = torch.ones_like(like[:1, :1]), torch.zeros_like(like[:1])
        return self.conv_z(torch.cat((ones, zeros), dim=1))
