"""Grow, feather and fill masks. Plain torch on any device; fractions are kept."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .images import import_cv2


def grow_mask(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Grow a mask by a disc of radius `pixels`, or shrink it when negative.

    A pixel takes the largest (smallest) value within Euclidean distance `pixels`. What lies outside the picture
    neither grows in nor eats from the rim.

    Args:
        mask: `[F, H, W]`, float.
        pixels: radius; 0 returns the mask itself.
    """
    if pixels == 0:
        return mask
    if pixels < 0:
        return 1 - grow_mask(1 - mask, -pixels)
    # Frame by frame: the running maxima of a long clip would fill the memory.
    return torch.stack([_grow_frame(frame, pixels) for frame in mask])


def _grow_frame(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Dilate one mask `[H, W]` by a disc, row offset by row offset."""
    height, width = mask.shape
    # Running maxima of length 2^k along x; any longer window is the larger of two of them.
    runs = [F.pad(mask, (pixels, pixels))]
    while 2 ** len(runs) <= 2 * pixels + 1:
        step = 2 ** (len(runs) - 1)
        last = runs[-1]
        runs.append(torch.maximum(last, F.pad(last, (0, step))[:, step:]))
    grown = torch.zeros_like(mask)
    for offset in range(min(pixels, height - 1) + 1):
        half = math.isqrt(pixels * pixels - offset * offset)
        length = 2 * half + 1
        level = length.bit_length() - 1
        start, end = pixels - half, pixels + half + 1 - 2**level
        row = torch.maximum(runs[level][:, start : start + width], runs[level][:, end : end + width])
        grown[offset:] = torch.maximum(grown[offset:], row[: height - offset])
        if offset:
            grown[:-offset] = torch.maximum(grown[:-offset], row[offset:])
    return grown


def feather_mask(mask: torch.Tensor, pixels: float) -> torch.Tensor:
    """Soften the edge over about `pixels` pixels to each side (Gaussian, standard deviation pixels / 2).

    Args:
        mask: `[F, H, W]`, float.
        pixels: 0 returns the mask itself. The picture's rim is continued, so it is not softened.
    """
    if pixels <= 0:
        return mask
    from kornia.filters import gaussian_blur2d

    sigma = pixels / 2
    # `replicate` needs no limit on the kernel's size, `reflect` fails when it exceeds the picture.
    size = 2 * max(1, math.ceil(3 * sigma)) + 1
    blurred = gaussian_blur2d(mask.unsqueeze(1), (size, size), (sigma, sigma), border_type="replicate")
    return blurred[:, 0].clamp(0, 1)


def fill_holes(mask: torch.Tensor) -> torch.Tensor:
    """Fill background that the subject encloses: parts below 0.5 that do not reach the rim become 1.

    Args:
        mask: `[F, H, W]`, float. Background is connected over edges, not corners.
    """
    cv2 = import_cv2()
    filled = mask.clone()
    for index in range(mask.shape[0]):
        ground = (mask[index] < 0.5).cpu().numpy()
        count, parts = cv2.connectedComponents(ground.astype("uint8"), connectivity=4)
        if count < 2:
            continue
        outer = torch.zeros(count, dtype=torch.bool)
        labels = torch.from_numpy(parts).long()
        for rim in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            outer[rim] = True
        holes = torch.from_numpy(ground) & ~outer[labels]
        filled[index][holes.to(mask.device)] = 1
    return filled


def seam(keep_mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Weight of the kept picture: at least the mask everywhere, falling to 0 within `pixels` outside it.

    Where the mask is 1 the weight is exactly 1, so the seam lies on the edit side only.

    Args:
        keep_mask: `[F, H, W]`, float 0..1.
        pixels: width of the seam; 0 returns the mask itself.
    """
    if pixels <= 0:
        return keep_mask
    # A kernel of radius b around a mask grown by g <= b stays within g + b of it.
    blur = pixels // 2
    grown = grow_mask(keep_mask, pixels - blur)
    if blur:
        window = torch.hann_window(2 * blur + 3, periodic=False, dtype=grown.dtype, device=grown.device)[1:-1]
        window = window / window.sum()
        grown = F.pad(grown.unsqueeze(1), (blur,) * 4, mode="replicate")
        grown = F.conv2d(F.conv2d(grown, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))[:, 0]
    return torch.maximum(grown, keep_mask).clamp(0, 1)
