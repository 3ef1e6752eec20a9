"""How well a region of a picture was preserved."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

HIGHEST_PSNR = 100.0
"""Reported in dB when two regions are equal, instead of infinity (which neither JSON nor a widget can hold)."""


def _from_error(squared_error: float, weight: float) -> float:
    if weight <= 0:
        return math.nan
    mean = squared_error / weight
    return HIGHEST_PSNR if mean <= 10 ** (-HIGHEST_PSNR / 10) else -10 * math.log10(mean)


def _frame_sums(images: torch.Tensor, reference: torch.Tensor, weights: torch.Tensor) -> Iterator[tuple[float, float]]:
    # One frame at a time: a clip's difference would be a third copy of the clip.
    for index in range(images.shape[0]):
        weight = weights[index if weights.shape[0] > 1 else 0].cpu().double()
        error = (images[index].cpu().double() - reference[index].cpu().double()).square()
        yield float((error * weight.unsqueeze(-1)).sum()), float(weight.sum()) * images.shape[-1]


def region_psnr(images: torch.Tensor, reference: torch.Tensor, weights: torch.Tensor) -> tuple[float, list[float]]:
    """PSNR in dB of a region, for values with peak 1: 10 log10(1 / mean squared error over the region).

    Args:
        images: `[F, H, W, C]`.
        reference: `[F, H, W, C]`.
        weights: `[F, H, W]` or `[1, H, W]` (serves all frames), 1 inside the region, 0 outside; fractions weigh.

    Returns:
        PSNR over all frames together and PSNR of each frame. Equal regions give 100, an empty region NaN.

    Raises:
        ValueError: when shapes do not match.
    """
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(f"images {list(images.shape)} and reference {list(reference.shape)} must be [F, H, W, C] alike.")
    if weights.shape[1:] != images.shape[1:3] or weights.shape[0] not in (1, images.shape[0]):
        raise ValueError(f"weights {list(weights.shape)} do not fit images {list(images.shape)}.")
    sums = list(_frame_sums(images, reference, weights))
    whole = _from_error(sum(error for error, _ in sums), sum(weight for _, weight in sums))
    return whole, [_from_error(error, weight) for error, weight in sums]
