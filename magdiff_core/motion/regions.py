"""Drawn regions to edit masks."""

from __future__ import annotations

import torch
from torch import Tensor

from .trajectories import ELLIPSE, RECTANGLE, Region, Trajectories


def edit_masks(drawn: Trajectories) -> list[Tensor]:
    """One edit mask `[F, H, W]` for each region, float32, 1 = may change. A pixel is inside when its centre is.

    All frames share one picture of memory. Raises ValueError for a region without a pixel.
    """
    masks = []
    for index, region in enumerate(drawn.regions):
        inside = region_mask(region, drawn.height, drawn.width)
        if not inside.any():
            raise ValueError(
                f"region {index} ({region.name or region.shape}) covers no pixel of a picture of {drawn.width}x{drawn.height}: "
                "draw it larger, or inside of the picture"
            )
        masks.append(inside.float().expand(drawn.frames, -1, -1))
    return masks


def union(masks: list[Tensor], frames: int, height: int, width: int) -> Tensor:
    """The edit mask of several regions together, `[F, H, W]`; all 0 when there are none."""
    if not masks:
        return torch.zeros(1, height, width).expand(frames, -1, -1)
    together = masks[0][:1]
    for mask in masks[1:]:
        together = torch.maximum(together, mask[:1])
    return together.expand(frames, -1, -1)


def region_mask(region: Region, height: int, width: int) -> Tensor:
    """Pixels `[H, W]`, bool, whose centres lie inside of `region`."""
    x = (torch.arange(width, dtype=torch.float64) + 0.5)[None, :]
    y = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None]
    corners = [(point.u * width, point.v * height) for point in region.points]
    if region.shape == RECTANGLE:
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        return (x > x0) & (x < x1) & (y > y0) & (y < y1)
    if region.shape == ELLIPSE:
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        if x0 == x1 or y0 == y1:
            return torch.zeros(height, width, dtype=torch.bool)
        return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1.0
    return _polygon(corners, x, y)


def _polygon(corners: list[tuple[float, float]], x: Tensor, y: Tensor) -> Tensor:
    """Even-odd rule: count the edges that a ray to the right crosses."""
    inside = torch.zeros(y.shape[0], x.shape[1], dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ay == by:
            continue
        crosses = (y >= min(ay, by)) & (y < max(ay, by))
        inside ^= crosses & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return inside
