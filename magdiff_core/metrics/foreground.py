"""Where the subject of a procedural clip is, and how it moves, from pixels alone.

The tracker knows nothing of the subject's looks: it takes everything that does not look like the background. So it
still reads the motion of a subject that came out wrong, where a search for the right picture would lose it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..data.procedural import MOTIONS

RING = 6
"""Width in pixels of the border that is taken for background."""
LEAST_DISTANCE = 0.12
"""Colours nearer to the background's than this (length in RGB, 0..1 a channel) never count as subject."""
MOST_BORDER_ERROR = 0.3
"""A background that is farther than this from a tenth of the border's pixels is not the clip's."""
LEAST_AREA = 12.0
"""Pixels a frame that a subject must cover to be tracked."""
LEAST_SPEED = 0.7
"""Pixels a frame from which on a clip counts as moving."""
LEAST_GROWTH = 0.03
"""Nats of length a frame from which on a clip counts as growing or shrinking."""
UNTRACKED = -1


def border_ring(height: int, width: int) -> torch.Tensor:
    """`[h, w]` bool, True within `RING` pixels of the border."""
    ring = torch.ones(height, width, dtype=torch.bool)
    ring[RING:-RING, RING:-RING] = False
    return ring


def _distance_to_segment(colours: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Distance of `colours [..., 3]` to the line between two colours: mixtures of the two tones are background too."""
    along = end - start
    place = ((colours - start) @ along / along.square().sum().clamp_min(1e-5)).clamp(-0.15, 1.15)
    return (colours - start - place[..., None] * along).norm(dim=-1)


def _smooth(frames: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(frames.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)


def _majority(far: torch.Tensor) -> torch.Tensor:
    """Pixels whose neighbourhood agrees: speckle and thin lines between bands are no subject."""
    return F.avg_pool2d(far.float()[:, None], 5, 1, 2)[:, 0] > 0.5


def foreground_of_border(frames: torch.Tensor) -> torch.Tensor:
    """Pixels unlike the two tones on the border of the clip: needs no idea of the background's pattern.

    Args:
        frames: `[F, h, w, 3]` in 0..1.

    Returns:
        `[F, h, w]` bool.
    """
    smooth = _smooth(frames)
    border = smooth[:, border_ring(*frames.shape[1:3])].flatten(0, 1)
    brightness = border.mean(1)
    low, high = brightness.quantile(torch.tensor([0.2, 0.8]))
    dark, light = border[brightness <= low].median(0).values, border[brightness >= high].median(0).values
    usual = float(_distance_to_segment(border, dark, light).quantile(0.9))
    return _majority(_distance_to_segment(smooth, dark, light) > max(LEAST_DISTANCE, 1.3 * usual))


def foreground_against(frames: torch.Tensor, background: torch.Tensor) -> torch.Tensor | None:
    """Pixels unlike a known background: also sees subjects whose colour lies between the background's two tones.

    Args:
        frames: `[F, h, w, 3]` in 0..1.
        background: `[F, h, w, 3]` in 0..1.

    Returns:
        `[F, h, w]` bool; None where the border of the clip does not look like `background`.
    """
    difference = _smooth(frames - background).norm(dim=-1)
    usual = float(difference[:, border_ring(*frames.shape[1:3])].quantile(0.9))
    if usual > MOST_BORDER_ERROR:
        return None
    return _majority(difference > max(LEAST_DISTANCE, 1.3 * usual))


def _slope(values: torch.Tensor) -> float:
    time = torch.arange(len(values), dtype=values.dtype)
    time = time - time.mean()
    return float((time * (values - values.mean())).sum() / time.square().sum())


def motion_of(subject_mask: torch.Tensor) -> int:
    """The motion of a mask, as an index into `MOTIONS`; `UNTRACKED` where a frame holds next to nothing.

    Args:
        subject_mask: `[F, h, w]`, bool or 0..1.
    """
    weight = subject_mask.float()
    area = weight.sum((1, 2))
    if (area < LEAST_AREA).any():
        return UNTRACKED
    rows, columns = torch.arange(weight.shape[1]).float(), torch.arange(weight.shape[2]).float()
    x = _slope((weight.sum(1) * columns).sum(1) / area)
    y = _slope((weight.sum(2) * rows).sum(1) / area)
    growth = _slope(area.sqrt().log())
    if max(abs(x), abs(y)) > LEAST_SPEED:
        if abs(x) > abs(y):
            return MOTIONS.index("moves right" if x > 0 else "moves left")
        return MOTIONS.index("moves down" if y > 0 else "moves up")
    if growth > LEAST_GROWTH:
        return MOTIONS.index("grows")
    return MOTIONS.index("shrinks") if growth < -LEAST_GROWTH else MOTIONS.index("stays still")
