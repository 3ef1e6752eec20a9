"""All closed-form measurements of one procedural clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .background import BackgroundFit, fit_background, flicker
from .foreground import foreground_against, foreground_of_border, motion_of
from .subject import SCALES, Template, TemplateSearch, nearest

SEARCHED_FRAMES = slice(1, None, 2)
"""Frames in which the subject is searched: every second, without the first, which shows the given pose."""
IDENTITY_SCALES = SCALES[::2]


@dataclass(frozen=True)
class ClipMeasures:
    """motion, background_colour, pattern: indices into `MOTIONS` (-1: none found), `COLOURS`, `PATTERNS`. nearest: index of
    the candidate subject that explains the clip best. subject_rmse: error of the first candidate, 0..1. flicker: 0..1."""

    motion: int
    background_colour: int
    pattern: int
    nearest: int
    subject_rmse: float
    flicker: float


def split_clip(frames: Tensor) -> tuple[Tensor, BackgroundFit]:
    """The pixels of the subject `[F, h, w]` (bool) and the background of a clip `[F, 64, 64, 3]` in 0..1.

    First everything unlike the border is taken for the subject, then everything unlike the background fitted without it.
    """
    rough = foreground_of_border(frames)
    background = fit_background(frames, rough)
    fine = foreground_against(frames, background.picture)
    return (rough if fine is None else fine), background


def measure_clip(frames: Tensor, candidates: Sequence[Template]) -> ClipMeasures:
    """Measures a clip.

    Args:
        frames: `[F, 64, 64, 3]` in 0..1.
        candidates: the given subject first, then others to tell it from (none: `nearest` is 0).

    Raises:
        ValueError: no candidate, or frames of another size.
    """
    if not candidates:
        raise ValueError("candidates is empty: give the subject of the clip first")
    frames = frames.float()
    subject_mask, background = split_clip(frames)
    search = TemplateSearch(frames[SEARCHED_FRAMES], background.picture[SEARCHED_FRAMES])
    return ClipMeasures(
        motion=motion_of(subject_mask),
        background_colour=background.colour,
        pattern=background.pattern,
        nearest=nearest(search, candidates, IDENTITY_SCALES),
        subject_rmse=float(search.rmse(candidates[0]).mean()),
        flicker=flicker(frames, subject_mask),
    )
