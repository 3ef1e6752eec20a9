"""Trajectories and motion maps exactly as the released ReVideo scripts make them, for comparison with their results.

Kept with all their peculiarities: whole pixels, moves by assignment, a first move of about zero, positions that wrap around the
left and upper border, and preview tracks that run one frame ahead of the condition. `motion_map` is the way without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .motion_map import spread

Point = tuple[float, float]


def scaled_point(point: Point, size: tuple[int, int], working_size: tuple[int, int]) -> Point:
    """(x, y) of a picture of `size` (width, height) in pixels of `working_size`."""
    return point[0] * (working_size[0] / size[0]), point[1] * (working_size[1] / size[1])


def rectangle(left: float, top: float, right: float, bottom: float, width: int, height: int) -> Tensor:
    """Edit region `[H, W]`, 1 inside; ends are cut to whole pixels and exclusive."""
    region = torch.zeros(height, width)
    region[int(top) : int(bottom), int(left) : int(right)] = 1.0
    return region


def _place(start: Point, end: Point, index: int, frames: int, x_bias: Sequence[float], y_bias: Sequence[float]) -> Point:
    return tuple(
        float(int(a + index * (b - a) / (frames - 2) + bias[index % len(bias)]))
        for a, b, bias in zip(start, end, (x_bias, y_bias), strict=True)
    )


def line_positions(
    start: Point, end: Point, frames: int, x_bias: Sequence[float] = (0,), y_bias: Sequence[float] = (0,)
) -> Tensor:
    """A line from `start` to `end` with a repeated offset, as the condition has it: `[F, 2]` (x, y), float64.

    Frame 0 is the exact start, frame i + 1 is `int(start + i (end - start) / (F - 2) + bias[i mod n])`.
    """
    places = [_place(start, end, i, frames, x_bias, y_bias) for i in range(frames - 1)]
    return torch.tensor([start, *places], dtype=torch.float64)


def drawn_positions(
    start: Point, end: Point, frames: int, x_bias: Sequence[float] = (0,), y_bias: Sequence[float] = (0,)
) -> Tensor:
    """The same line as the scripts' preview draws it: one frame ahead of the condition, past the end in the last frame."""
    places = [_place(start, end, i, frames, x_bias, y_bias) for i in range(1, frames)]
    return torch.tensor([start, *places], dtype=torch.float64)


def displacements(path: Tensor, height: int, width: int, clip: bool = True) -> Tensor:
    """The map before filtering, `[F, 2, H, W]` float32, (dy, dx) assigned at the truncated place of arrival.

    `path`: `[F, N, 2]` (x, y) in pixels. `clip`: places outside are moved to the border (script for constant motion); without it
    negative ones wrap around and too large ones raise IndexError (scripts for drawn lines). Of two tracks on one pixel the later
    one counts.
    """
    maps = torch.zeros(path.shape[0], 2, height, width)
    for frame in range(1, path.shape[0]):
        for track in range(path.shape[1]):
            column, row = (int(value) for value in path[frame, track])
            if clip:
                column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
            maps[frame, :, row, column] = (path[frame, track] - path[frame - 1, track]).flip(0).float()
    return maps


def motion_map(path: Tensor, height: int, width: int, clip: bool = True) -> Tensor:
    """The filtered map `[F, 2, H, W]`; arguments as in `displacements`."""
    return spread(displacements(path, height, width, clip))
