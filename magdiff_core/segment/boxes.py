"""Bounding boxes of masks, in core's form."""

from __future__ import annotations

import torch


def box_of_mask(mask: torch.Tensor) -> dict[str, int] | None:
    """Smallest box around the pixels of at least 0.5: `{"x", "y", "width", "height"}`, or None without such pixels.

    Args:
        mask: `[H, W]`.
    """
    inside = mask >= 0.5
    rows, columns = torch.nonzero(inside.any(1)).flatten(), torch.nonzero(inside.any(0)).flatten()
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return {"x": x, "y": y, "width": int(columns[-1]) + 1 - x, "height": int(rows[-1]) + 1 - y}


def boxes_of_masks(masks: torch.Tensor) -> dict[str, int] | list[list[dict[str, int]]]:
    """BOUNDING_BOX of masks `[F, H, W]`: a dict for one picture, for a clip a list of boxes per frame.

    The list of a frame is empty when nothing of the subject shows in it, as in core's detectors. One picture without
    a subject gives a box of size 0.
    """
    boxes = [box_of_mask(mask) for mask in masks]
    if len(boxes) == 1:
        return boxes[0] or {"x": 0, "y": 0, "width": 0, "height": 0}
    return [[box] if box else [] for box in boxes]
