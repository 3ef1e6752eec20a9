"""Drawn paths to positions: where each point is in each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from .trajectories import EASE_IN, EASE_IN_OUT, EASE_OUT, SMOOTH, Track, Trajectories

STEPS = 64
"""Straight pieces that stand for one span of a smooth curve."""
TIME_TOLERANCE = 1e-6
"""So that a span which ends at a frame's time holds this frame in spite of rounding."""


def frame_times(frames: int) -> Tensor:
    """Time of each frame, `[F]` from 0 to 1; a single frame is at 0."""
    return torch.linspace(0.0, 1.0, frames, dtype=torch.float64) if frames > 1 else torch.zeros(1, dtype=torch.float64)


def positions(drawn: Trajectories) -> tuple[Tensor, Tensor]:
    """Positions of all tracks `[F, N, 2]` (x, y) in pixels on pixel edges, float32, and visibility `[F, N]`, bool.

    The point moves at constant speed along its path between two points with a time, then `ease` bends time. Before its first and
    after its last time it stands still; a track of one point always does.
    """
    paths = [track_positions(track, drawn.frames, drawn.width, drawn.height) for track in drawn.tracks]
    seen = [track_visibility(track, drawn.frames) for track in drawn.tracks]
    if not paths:
        return torch.zeros(drawn.frames, 0, 2), torch.zeros(drawn.frames, 0, dtype=torch.bool)
    return torch.stack(paths, 1).float(), torch.stack(seen, 1)


def track_visibility(track: Track, frames: int) -> Tensor:
    """Frames in which `track` is visible, `[F]` bool."""
    times = frame_times(frames)
    seen = torch.zeros(frames, dtype=torch.bool)
    for start, end in track.visible:
        seen |= (times >= start - TIME_TOLERANCE) & (times <= end + TIME_TOLERANCE)
    return seen


def track_positions(track: Track, frames: int, width: int, height: int) -> Tensor:
    """Positions of one track `[F, 2]`, float64, in pixels of a picture of this size."""
    size = torch.tensor([width, height], dtype=torch.float64)
    knots = torch.tensor([[knot.u, knot.v] for knot in track.knots], dtype=torch.float64) * size
    if len(knots) == 1:
        return knots.expand(frames, 2).clone()
    path = _smooth(knots) if track.curve == SMOOTH else knots
    lengths = torch.cat((path.new_zeros(1), (path[1:] - path[:-1]).norm(dim=1).cumsum(0)))
    knot_lengths = lengths[::STEPS] if track.curve == SMOOTH else lengths
    knot_times = torch.tensor(_all_times([knot.t for knot in track.knots], knot_lengths.tolist()), dtype=torch.float64)

    start, end = knot_times[0], knot_times[-1]
    share = ((frame_times(frames) - start) / (end - start)).clamp(0.0, 1.0)
    times = start + _eased(share, track.ease) * (end - start)
    travelled = _interpolate(times, knot_times, knot_lengths)
    return torch.stack([_interpolate(travelled, lengths, path[:, axis]) for axis in (0, 1)], 1)


def _all_times(times: list[float | None], lengths: list[float]) -> list[float]:
    """Times of the knots between: by length of path from the last knot with a time to the next one."""
    known = [index for index, t in enumerate(times) if t is not None]
    filled = list(times)
    for before, after in zip(known, known[1:], strict=False):
        way = lengths[after] - lengths[before]
        for index in range(before + 1, after):
            share = (lengths[index] - lengths[before]) / way if way > 0.0 else (index - before) / (after - before)
            filled[index] = times[before] + share * (times[after] - times[before])
    return filled


def _eased(share: Tensor, ease: str) -> Tensor:
    if ease == EASE_IN:
        return share**2
    if ease == EASE_OUT:
        return 1.0 - (1.0 - share) ** 2
    if ease == EASE_IN_OUT:
        return share**2 * (3.0 - 2.0 * share)
    return share


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear y(x) at `at`; x grows or stays, and at a jump the later value counts."""
    right = torch.searchsorted(x.contiguous(), at.contiguous(), right=True).clamp(1, len(x) - 1)
    left = right - 1
    span = x[right] - x[left]
    share = torch.where(span > 0.0, (at - x[left]) / span.clamp(min=torch.finfo(x.dtype).tiny), 1.0).clamp(0.0, 1.0)
    return y[left] + share * (y[right] - y[left])


def _smooth(knots: Tensor) -> Tensor:
    """A centripetal Catmull-Rom curve through `knots` `[K, 2]` as `[(K - 1) * STEPS + 1, 2]` points.

    It passes through every knot, makes no loops of its own, and for two knots is the straight line. Its ends lie as if the
    path went on straight; two knots at one place are a rest.
    """
    pieces = [knots[:1]]
    s = torch.linspace(0.0, 1.0, STEPS + 1, dtype=knots.dtype)[1:, None]
    for index in range(len(knots) - 1):
        p1, p2 = knots[index], knots[index + 1]
        p0 = knots[index - 1] if index > 0 else 2 * p1 - p2
        p3 = knots[index + 2] if index + 2 < len(knots) else 2 * p2 - p1
        p0 = 2 * p1 - p2 if torch.equal(p0, p1) else p0
        p3 = 2 * p2 - p1 if torch.equal(p3, p2) else p3
        before, here, after = ((b - a).norm() ** 0.5 for a, b in ((p0, p1), (p1, p2), (p2, p3)))
        if here == 0.0:
            pieces.append(p1.expand(STEPS, 2))
            continue
        leaving = p2 - p1 + here * ((p1 - p0) / before - (p2 - p0) / (before + here))
        arriving = p2 - p1 + here * ((p3 - p2) / after - (p3 - p1) / (here + after))
        pieces.append(
            (2 * s**3 - 3 * s**2 + 1) * p1
            + (s**3 - 2 * s**2 + s) * leaving
            + (3 * s**2 - 2 * s**3) * p2
            + (s**3 - s**2) * arriving
        )
    return torch.cat(pieces)
