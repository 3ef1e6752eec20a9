"""Points and boxes that say where the subject is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""


@dataclass(frozen=True)
class Prompt:
    """What the user pointed at in one frame; all empty means "nothing was said"."""

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.positive or self.negative or self.boxes)


def parse_points(text: str | None, name: str, width: int, height: int) -> tuple[Point, ...]:
    """Read points the way core's SAM3 nodes write them: `[{"x": 12, "y": 34}, ...]` in pixels.

    Args:
        text: JSON text; None or blank means no points.
        name: input name for error messages.
        width: of the picture, in pixels.
        height: of the picture, in pixels.

    Raises:
        ValueError: not JSON, not a list of {"x", "y"}, not finite, or outside the picture.
    """
    if text is None or not text.strip():
        return ()
    shape = '[{"x": 120, "y": 80}]'
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}): write it like {shape}.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{name} must be a list of points like {shape}, got {type(entries).__name__}.")
    points = []
    for index, entry in enumerate(entries):
        try:
            x, y = float(entry["x"]), float(entry["y"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f'{name}: point {index} is {entry!r}, it needs numbers "x" and "y": {shape}.') from error
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{name}: point {index} is ({x}, {y}), not finite numbers.")
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"{name}: point {index} at ({x:g}, {y:g}) lies outside the picture of {width}x{height} pixels; "
                "points are in pixels of `images`, from the top left corner."
            )
        points.append((x, y))
    return tuple(points)


def _one_box(entry: object, name: str, width: int, height: int) -> Box:
    try:
        x, y, box_width, box_height = (float(entry[key]) for key in ("x", "y", "width", "height"))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f'{name}: {entry!r} is no box, it needs numbers "x", "y", "width" and "height".') from error
    numbers = f"x {x:g}, y {y:g}, width {box_width:g}, height {box_height:g}"
    if not all(math.isfinite(value) for value in (x, y, box_width, box_height)):
        raise ValueError(f"{name}: {numbers} are not finite numbers.")
    if box_width <= 0 or box_height <= 0:
        raise ValueError(f"{name}: {numbers} is empty: width and height must be above 0.")
    x0, y0, x1, y1 = max(0.0, x), max(0.0, y), min(float(width), x + box_width), min(float(height), y + box_height)
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise ValueError(f"{name}: {numbers} lies outside the picture of {width}x{height} pixels.")
    return x0, y0, x1, y1


def parse_boxes(value: object, name: str, frames: int, width: int, height: int) -> dict[int, tuple[Box, ...]]:
    """Read a BOUNDING_BOX value: one box, one per frame, or several per frame.

    Args:
        value: dict {x, y, width, height}; list of dicts (for one picture: its boxes; for a clip: one box for the first
            frame, or one per frame); list of lists of dicts (core's form: boxes by frame). None means no box.
        name: input name for error messages.
        frames: F.
        width: of the picture, in pixels; boxes are cut to the picture.
        height: of the picture, in pixels.

    Returns:
        Boxes by frame number; frames without a box are absent.

    Raises:
        ValueError: wrong form, a count that is neither 1 nor F, or a box that is empty or outside the picture.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        by_frame: list[list[object]] = [[value]]
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if all(isinstance(entry, dict) for entry in value):
            by_frame = [list(value)] if frames == 1 else [[entry] for entry in value]
        elif all(isinstance(entry, Sequence) and not isinstance(entry, (str, bytes)) for entry in value):
            by_frame = [list(entry) for entry in value]
        else:
            raise ValueError(f"{name} mixes boxes and lists of boxes: give one box, or one entry per frame.")
    else:
        raise ValueError(f"{name} must be a bounding box or a list of them, got {type(value).__name__}.")
    if len(by_frame) not in (0, 1, frames):
        raise ValueError(
            f"{name} has boxes for {len(by_frame)} frames, images has {frames}: give one box (for the first frame) or {frames}."
        )
    boxes = {
        index: tuple(_one_box(entry, f"{name} of frame {index}", width, height) for entry in entries)
        for index, entries in enumerate(by_frame)
        if entries
    }
    if value and not boxes:
        raise ValueError(f"{name} holds no box in any frame: the detector before this node found nothing.")
    return boxes


def parse_frame_numbers(text: str | None, name: str, count: int, frames: int) -> tuple[int, ...]:
    """Read frame numbers such as "12, 30", counted from 0.

    Args:
        text: numbers separated by commas or spaces.
        name: input name for error messages.
        count: how many numbers are needed (one per corrected mask).
        frames: F; each number is in 0..F-1.

    Raises:
        ValueError: not whole numbers, repeated, out of range, or not `count` of them.
    """
    parts = (text or "").replace(",", " ").split()
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError as error:
        raise ValueError(f'{name} is "{text}": write whole frame numbers like "12, 30", counted from 0.') from error
    if len(numbers) != count:
        raise ValueError(
            f"{name} names {len(numbers)} frames, but there are {count} correction masks: give one frame number per "
            'mask, like "12, 30".'
        )
    for number in numbers:
        if not 0 <= number < frames:
            raise ValueError(f"{name}: frame {number} does not exist, images has frames 0 to {frames - 1}.")
        if numbers.count(number) > 1:
            raise ValueError(f"{name}: frame {number} is named more than once.")
    return numbers


def centred_box(width: int, height: int, share: float = 0.8) -> Box:
    """The middle `share` of the picture in each direction: where GrabCut starts when nothing was said."""
    x, y = width * (1 - share) / 2, height * (1 - share) / 2
    return x, y, width - x, height - y
