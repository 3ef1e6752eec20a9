"""Following points through a clip: pyramidal Lucas-Kanade with a check forth and back. Needs OpenCV, no weights.

Positions are in pixels on pixel edges, as in TRACKS; OpenCV counts from pixel centres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

WINDOW = 21
"""Side of the patch that is followed, in pixels of each level of the pyramid."""
LEAST_TOP = 16
"""The pyramid ends where a side of the picture would get shorter than this."""
LEAST_STRUCTURE = 1e-4
"""Smallest eigenvalue of a patch's gradients, as OpenCV scales it: on flat ground a point could be anywhere."""
MOST_POINTS = 4096
PAPER_MOST = 10


def import_cv2() -> ModuleType:
    """OpenCV, or an error that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Track Points needs OpenCV: run `pip install opencv-python-headless` in ComfyUI's Python environment and restart."
        ) from error
    return cv2


def grid_points(width: int, height: int, spacing: int, inside: Tensor | None = None) -> Tensor:
    """Points `[N, 2]` (x, y) at the centres of squares of `spacing` pixels; with `inside` `[H, W]` those where it is 0.5 or more.

    Raises ValueError when there are none, or more than 4096.
    """
    x, y = ((torch.arange(max(1, side // spacing)) + 0.5) * side / max(1, side // spacing) for side in (width, height))
    points = torch.stack((x.repeat(len(y)), y.repeat_interleave(len(x))), 1)
    if inside is not None:
        points = points[inside[points[:, 1].long(), points[:, 0].long()] >= 0.5]
    if len(points) == 0:
        raise ValueError(f"no point of a grid of {spacing} pixels lies inside of edit_mask: make grid_spacing smaller")
    if len(points) > MOST_POINTS:
        raise ValueError(
            f"a grid of {spacing} pixels has {len(points)} points here, at most {MOST_POINTS} are followed: "
            "make grid_spacing larger, or wire an edit_mask"
        )
    return points


def follow_points(
    source_frames: Tensor,
    points: Tensor,
    start_frame: int = 0,
    tolerance: float = 1.0,
    each_frame: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow `points` from `start_frame` to both ends of the clip.

    A point counts as lost from the first frame on in which it leaves the picture, stands on flat ground, or does not come back
    to within `tolerance` pixels of its place when it is followed back to the frame before. Lost points stay lost: they keep
    their last position and are not visible.

    Args:
        source_frames: `[F, H, W, 3]`, float 0 .. 1.
        points: `[N, 2]` (x, y) in pixels of `start_frame`.
        start_frame: number of the frame, from 0.
        tolerance: in pixels.
        each_frame: called after each frame but the start.

    Returns:
        Positions `[F, N, 2]` float32 and visibility `[F, N]` bool.
    """
    frames = source_frames.shape[0]
    path = points.float().expand(frames, -1, -1).clone()
    visibility = torch.ones(frames, len(points), dtype=torch.bool)
    for order in (range(start_frame, frames), range(start_frame, -1, -1)):
        _follow(source_frames, order, path, visibility, tolerance, each_frame)
    return path, visibility


def _follow(
    source_frames: Tensor, order: Sequence[int], path: Tensor, visibility: Tensor, tolerance: float, each_frame: Callable | None
) -> None:
    cv2 = import_cv2()
    height, width = source_frames.shape[1:3]
    levels = max(0, int(np.log2(min(height, width) / LEAST_TOP)))
    settings = {
        "winSize": (WINDOW, WINDOW),
        "maxLevel": levels,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
        "minEigThreshold": LEAST_STRUCTURE,
    }
    before = _grey(source_frames[order[0]])
    for previous, current in zip(order, order[1:], strict=False):
        after = _grey(source_frames[current])
        path[current], visibility[current] = path[previous], False
        alive = visibility[previous].nonzero()[:, 0]
        if len(alive):
            start = (path[previous, alive].numpy() - 0.5).reshape(-1, 1, 2)
            there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, start, None, **settings)
            back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **settings)
            place = there[:, 0] + 0.5
            good = (found[:, 0] == 1) & (returned[:, 0] == 1) & (np.linalg.norm((back - start)[:, 0], axis=1) <= tolerance)
            good &= (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
            kept = alive[torch.from_numpy(good)]
            path[current, kept] = torch.from_numpy(place[good])
            visibility[current, kept] = True
        before = after
        if each_frame is not None:
            each_frame()


def _grey(picture: Tensor) -> np.ndarray:
    """Brightness (Rec. 601) of `[H, W, 3]` as uint8."""
    grey = picture.float() @ picture.new_tensor([0.299, 0.587, 0.114]).float()
    return (grey.clamp(0.0, 1.0) * 255).round().to(torch.uint8).contiguous().numpy()


def path_lengths(path: Tensor, visibility: Tensor) -> Tensor:
    """Length of each track `[N]` in pixels, over the moves between frames in which it is visible."""
    if path.shape[0] < 2:
        return torch.zeros(path.shape[1])
    moves = (path[1:] - path[:-1]).norm(dim=-1)
    return (moves * (visibility[1:] & visibility[:-1])).sum(0)


def sample_by_length(path: Tensor, visibility: Tensor, seed: int, most: int = PAPER_MOST) -> Tensor:
    """Numbers of the tracks that ReVideo's training would take (paper section 3.2, "Trajectory sampling"), in rising order.

    Of the tracks longer than the mean, a number drawn evenly from 1 to `most` are drawn without replacement, each with a
    probability that is its share of the length. Where no track is longer than the mean (all are equal) all of them take part.
    """
    lengths = path_lengths(path, visibility).double()
    longer = (lengths > lengths.mean()).nonzero()[:, 0]
    if len(longer) == 0:
        longer = torch.arange(len(lengths))
    generator = torch.Generator().manual_seed(seed)
    count = min(int(torch.randint(1, most + 1, (1,), generator=generator)), len(longer))
    weights = lengths[longer] if lengths.sum() > 0 else torch.ones(len(longer), dtype=torch.float64)
    return longer[torch.multinomial(weights, count, replacement=False, generator=generator)].sort().values
