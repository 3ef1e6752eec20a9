"""Tracks to motion maps, ReVideo's motion condition c_mot (paper, "Task formulation" and "Trajectory sampling").

A map has two channels, (dy, dx) in pixels, the displacement of a point since the frame before, written where the point has
arrived, and spread by a Gaussian filter. Frame 0 is empty. The released code writes (dy, dx); the paper says "horizontal and
vertical".

`motion_map` is the way used by default. Against the released scripts (see `reference`): positions keep their fraction instead
of being cut to whole pixels; a point outside of the picture is left out instead of wrapping to the other side; all F - 1 moves
are written, also that of frame 1; where several points fall on the same pixel they are averaged instead of the last one
winning; and an invisible point leaves no mark.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

KERNEL_SIZE = 51
SIGMA = 10.0


def gaussian_line(size: int = KERNEL_SIZE, sigma: float = SIGMA) -> Tensor:
    """One line of the separable filter, `[size]` with a peak of 1: the outer product with itself is the released 2-D kernel."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.exp(-(offsets**2) / (2.0 * sigma**2)).float()


def spread(maps: Tensor) -> Tensor:
    """Filter `[F, 2, H, W]` with the peak-1 Gaussian (51 x 51, sigma 10, not normalised), zeros outside of the picture."""
    line = gaussian_line().to(maps)
    frames, channels, height, width = maps.shape
    planes = maps.reshape(frames * channels, 1, height, width)
    planes = conv2d(planes, line.view(1, 1, -1, 1), padding=(KERNEL_SIZE // 2, 0))
    return conv2d(planes, line.view(1, 1, 1, -1), padding=(0, KERNEL_SIZE // 2)).view(maps.shape)


def displacements(path: Tensor, visibility: Tensor, height: int, width: int) -> Tensor:
    """The map before filtering, `[F, 2, H, W]` float32.

    `path`: `[F, N, 2]` (x, y) in pixels on pixel edges of a picture of `height` x `width`; `visibility`: `[F, N]`. A move is
    written when the point is visible in both frames. Its (dy, dx) is shared by the four pixels around the place of arrival,
    with weights that sum to 1; where weights of several points sum to more than 1, their average stays.
    """
    frames, count, _ = path.shape
    maps = torch.zeros(frames, 2, height, width)
    if frames < 2 or count == 0:
        return maps
    path = path.double()
    move = (path[1:] - path[:-1]).flip(-1)
    seen = (visibility[1:] & visibility[:-1]).double()
    # From pixel edges to pixel centres.
    centre = path[1:] - 0.5
    corner = centre.floor()
    fraction = centre - corner
    for frame in range(1, frames):
        sums = torch.zeros(3, height * width)
        for down in (0, 1):
            for right in (0, 1):
                column, row = corner[frame - 1, :, 0] + right, corner[frame - 1, :, 1] + down
                share_x, share_y = fraction[frame - 1].unbind(-1)
                weight = (share_x if right else 1.0 - share_x) * (share_y if down else 1.0 - share_y)
                weight = weight * seen[frame - 1] * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
                pixel = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                values = torch.stack((weight * move[frame - 1, :, 0], weight * move[frame - 1, :, 1], weight))
                sums.index_add_(1, pixel, values.float())
        maps[frame] = (sums[:2] / sums[2:].clamp(min=1.0)).view(2, height, width)
    return maps


def motion_map(path: Tensor, visibility: Tensor, height: int, width: int) -> Tensor:
    """The motion condition c_mot, `[F, 2, H, W]`, (dy, dx) in pixels; arguments as in `displacements`."""
    return spread(displacements(path, visibility, height, width))
