"""From a trajectory string and, perhaps, a clip to everything that Draw Trajectories gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from .paths import positions
from .regions import edit_masks, union
from .tracks import touches
from .trajectories import Trajectories, parse_trajectories

SAME_SHAPE = 0.01
"""Largest relative difference of two aspect ratios that nobody sees."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """`path`: `[F, N, 2]` in pixels, `visibility`: `[F, N]`. `edit_masks`: one `[F, H, W]` a region; `edit_mask`: their union.

    `notes`: what was adjusted, one sentence each, for the user.
    """

    drawn: Trajectories
    path: Tensor
    visibility: Tensor
    edit_mask: Tensor
    edit_masks: list[Tensor]
    notes: tuple[str, ...]


def read_drawing(text: str, clip: tuple[int, int, int] | None = None) -> Drawing:
    """Sample a trajectory string.

    `clip`: (frames, height, width) of what is connected; its size replaces that of the string, and so does its length unless it
    is a single picture. Raises ValueError for a string that `parse_trajectories` refuses, a region without a pixel, or a track
    that is never in the picture.
    """
    drawn = parse_trajectories(text)
    notes = []
    if clip is not None:
        frames, height, width = clip
        frames = drawn.frames if frames == 1 else frames
        notes = _changes(drawn, frames, height, width)
        drawn = dataclasses.replace(drawn, frames=frames, height=height, width=width)
    path, visibility = positions(drawn)
    for index, touched in enumerate(touches(path, visibility, drawn.width, drawn.height).tolist()):
        if not touched:
            raise ValueError(
                f"track {index} ({drawn.tracks[index].name or 'no name'}) is never visible inside of the picture of "
                f"{drawn.width}x{drawn.height}: move it, make it visible, or take it out"
            )
    masks = edit_masks(drawn)
    if not masks:
        notes.append("No region is drawn: edit_mask is empty, nothing may change.")
    if not drawn.tracks:
        notes.append("No track is drawn: tracks holds no point.")
    edit_mask = union(masks, drawn.frames, drawn.height, drawn.width)
    return Drawing(drawn, path, visibility, edit_mask, masks, tuple(notes))


def _changes(drawn: Trajectories, frames: int, height: int, width: int) -> list[str]:
    notes = []
    if (drawn.width, drawn.height) != (width, height):
        stretched = abs((drawn.width / drawn.height) / (width / height) - 1.0) > SAME_SHAPE
        notes.append(
            f"Drawn for {drawn.width}x{drawn.height}, used for source_frames of {width}x{height}"
            + (": another shape, so the drawing is stretched." if stretched else ".")
        )
    if drawn.frames != frames:
        notes.append(f"Drawn for {drawn.frames} frames, used for source_frames of {frames}: the motion is as long as the clip.")
    return notes
