"""Put a control branch with a request on CONDITIONING."""

from __future__ import annotations

import logging

from torch import Tensor

from ..motion.hints import EditRequest
from ..motion.tracks import read_tracks, touches
from .checks import check_finite
from .control_file import LoadedControl
from .control_object import ReVideoControl

log = logging.getLogger("magdiff")


def make_request(control: LoadedControl, source_frames: Tensor, edit_mask: Tensor, tracks: dict, map_mode: str) -> EditRequest:
    """Check what the user gave, and bring it together.

    `source_frames`: `[F, H, W, 3]` in 0 .. 1. `edit_mask`: `[1 or F, H, W]` of the same size. `tracks`: TRACKS in pixels of
    `source_frames`. Raises ValueError, with numbers, for a clip shorter than those that the control was trained on, a mask
    without a pixel, and tracks of another length, without a point, or never in the picture.
    """
    frames, height, width = source_frames.shape[:3]
    check_finite("source_frames", source_frames)
    if frames < control.clip_frames:
        raise ValueError(
            f"source_frames has {frames} frames, this control was trained on clips of {control.clip_frames}: give at least "
            f"{control.clip_frames} (a longer clip with Context Windows of {control.clip_frames})"
        )
    if frames > control.clip_frames:
        log.info("%d frames, trained on clips of %d: sample with Context Windows of that length.", frames, control.clip_frames)
    changed = float((edit_mask >= 0.5).float().mean())
    if changed == 0.0:
        raise ValueError("edit_mask is empty: nothing of the video may change. 1 = may change; draw a region, or invert the mask")
    if changed == 1.0:
        log.warning("edit_mask covers the whole picture: nothing of source_frames is kept, only the motion of the tracks.")
    path, visibility = read_tracks(tracks, "tracks", frames)
    if path.shape[1] == 0:
        raise ValueError("tracks holds no point: draw or track one at least (a point that stands still is an anchor)")
    outside = (~touches(path, visibility, width, height)).nonzero()[:, 0].tolist()
    if len(outside) == path.shape[1]:
        raise ValueError(
            f"no point of tracks is ever visible inside of source_frames ({width}x{height}): tracks count in pixels of the frames "
            "that are wired here"
        )
    if outside:
        log.warning("%d of %d tracks are never visible in the picture and do nothing: %s", len(outside), path.shape[1], outside)
    return EditRequest(source_frames, edit_mask, path, visibility, map_mode)


def apply_control(
    positive: list,
    negative: list,
    control: LoadedControl,
    request: EditRequest,
    strength: float,
    start_percent: float,
    end_percent: float,
    fusion: str,
) -> tuple[list, list]:
    """Positive and negative with the same control object, after the controls that they carry already.

    At strength 0, or when start is not before end, they come back as they are. The MODEL is not known here; it is checked when
    sampling starts.
    """
    if strength == 0.0 or start_percent >= end_percent:
        return positive, negative
    objects: dict[int, ReVideoControl] = {}

    def controlled(conditioning: list) -> list:
        items = []
        for text, extras in conditioning:
            previous = extras.get("control")
            if id(previous) not in objects:
                made = ReVideoControl(control.patcher, request, fusion)
                made.set_cond_hint(None, strength, (start_percent, end_percent))
                objects[id(previous)] = made.set_previous_controlnet(previous)
            items.append([text, {**extras, "control": objects[id(previous)], "control_apply_to_uncond": False}])
        return items

    return controlled(positive), controlled(negative)

