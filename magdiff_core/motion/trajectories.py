"""The trajectory string, version 1: what was drawn, as data. Nothing is sampled here.

    {"v": 1, "size": [W, H], "fps": 10, "frames": 14,
     "regions": [{"shape": "rectangle", "points": [{"u": 0.2, "v": 0.3}, {"u": 0.6, "v": 0.9}]}],
     "tracks": [{"points": [{"u": 0.3, "v": 0.5, "t": 0}, {"u": 0.7, "v": 0.5, "t": 1}], "curve": "smooth", "ease": "in_out"}]}

Places are shares of the picture on pixel edges: u = x / W, v = y / H, so u = 0 is the left edge of the first pixel column and
u = 1 the right edge of the last. Times are shares of the clip: t = 0 is the first frame, t = 1 the last. So a string fits a
clip of any size and length; `size`, `fps` and `frames` say what to make when no clip is connected.

A track has 1 or more `points`; one alone is a static anchor. Optional: `t` of a point, `start` and `end` (times of the first and
the last point where these have no `t`; 0 and 1), `curve` ("line", "smooth"), `ease` ("linear", "in", "out", "in_out"), `visible`
(list of [from, to] times; all of the clip). A region has a `shape` ("rectangle" and "ellipse" by two opposite corners, "polygon"
by 3 or more points). Both may carry `name`, `color` ("#rrggbb"), `enabled` (false leaves it out) and `ui`, an object that is the
drawing canvas's own and never read here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

VERSION = 1
CURVES = (LINE, SMOOTH) = ("line", "smooth")
EASES = (LINEAR, EASE_IN, EASE_OUT, EASE_IN_OUT) = ("linear", "in", "out", "in_out")
SHAPES = (RECTANGLE, ELLIPSE, POLYGON) = ("rectangle", "ellipse", "polygon")
EMPTY = '{"v": 1, "size": [1024, 576], "fps": 10, "frames": 14, "regions": [], "tracks": []}'
"""A string with nothing drawn."""

MAX_FRAMES = 4096
MAX_SIDE = 16384
FAR = 1.0
"""How far outside of the picture a point may lie, in pictures: beyond that it was surely given in pixels."""

_TOP = ("v", "size", "fps", "frames", "regions", "tracks", "ui")
_SHARED = ("points", "name", "color", "enabled", "ui")
_TRACK = (*_SHARED, "start", "end", "curve", "ease", "visible")
_REGION = (*_SHARED, "shape")


@dataclass(frozen=True)
class Knot:
    """A control point: place as shares of the picture, time as a share of the clip or None for "in its turn"."""

    u: float
    v: float
    t: float | None = None


@dataclass(frozen=True)
class Track:
    """One drawn path. `knots[0].t` and `knots[-1].t` are always given; knots between them may have none."""

    knots: tuple[Knot, ...]
    curve: str = LINE
    ease: str = LINEAR
    visible: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    name: str = ""
    color: str | None = None


@dataclass(frozen=True)
class Region:
    """One drawn region: the points' meaning depends on `shape`."""

    shape: str
    points: tuple[Knot, ...]
    name: str = ""
    color: str | None = None


@dataclass(frozen=True)
class Trajectories:
    """Everything that was drawn and is enabled, with the size in pixels, frames a second and count of frames that go with it."""

    width: int
    height: int
    fps: float
    frames: int
    regions: tuple[Region, ...] = field(default=())
    tracks: tuple[Track, ...] = field(default=())


def parse_trajectories(text: str, name: str = "trajectories") -> Trajectories:
    """Read a trajectory string.

    Raises ValueError naming the place in the string and what is allowed there: no JSON, another version, unknown keys, numbers out
    of range, points in pixels, times that do not grow.
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}). An empty drawing is {EMPTY}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(data).__name__}. An empty drawing is {EMPTY}")
    if data.get("v") != VERSION:
        found = f"version {data['v']!r}" if "v" in data else 'no version ("v")'
        raise ValueError(f"{name} has {found}, this pack reads version {VERSION}: update the pack, or draw it again")
    _known(data, _TOP, name)
    size = data.get("size")
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError(f'{name}: "size" is {size!r}, it must be [width, height] in pixels')
    return Trajectories(
        width=_count(size[0], f"{name}: width", 8, MAX_SIDE),
        height=_count(size[1], f"{name}: height", 8, MAX_SIDE),
        fps=_number(data.get("fps"), f'{name}: "fps"', 0.01, 1000.0),
        frames=_count(data.get("frames"), f'{name}: "frames"', 1, MAX_FRAMES),
        regions=tuple(_region(entry, place) for place, entry in _entries(data, "regions", name)),
        tracks=tuple(_track(entry, place) for place, entry in _entries(data, "tracks", name)),
    )


def _entries(data: dict, key: str, name: str) -> list[tuple[str, dict]]:
    entries = data.get(key, [])
    if not isinstance(entries, list):
        raise ValueError(f'{name}: "{key}" must be a list, got {type(entries).__name__}')
    found = []
    for index, entry in enumerate(entries):
        place = f"{name}: {key}[{index}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{place} must be an object, got {type(entry).__name__}")
        if not isinstance(entry.get("enabled", True), bool):
            raise ValueError(f'{place}: "enabled" is {entry["enabled"]!r}, it must be true or false')
        found.append((place, entry))
    return [(place, entry) for place, entry in found if entry.get("enabled", True)]


def _track(entry: dict, place: str) -> Track:
    _known(entry, _TRACK, place)
    knots = _points(entry, place, timed=True)
    if not knots:
        raise ValueError(f"{place} has no points: give one (a static anchor) or more")
    visible = entry.get("visible", [[0.0, 1.0]])
    if not isinstance(visible, list) or not all(isinstance(span, list) and len(span) == 2 for span in visible):
        raise ValueError(f'{place}: "visible" is {visible!r}, it must be a list of [from, to] times from 0 to 1')
    spans = [tuple(_number(t, f'{place}: "visible"', 0.0, 1.0) for t in span) for span in visible]
    if any(start > end for start, end in spans):
        raise ValueError(f'{place}: "visible" holds a span that ends before it starts: {visible!r}')
    return Track(
        knots=_timed(knots, entry, place),
        curve=_choice(entry, "curve", CURVES, place),
        ease=_choice(entry, "ease", EASES, place),
        visible=tuple(spans),
        **_label(entry, place),
    )


def _timed(knots: tuple[Knot, ...], entry: dict, place: str) -> tuple[Knot, ...]:
    """Give the first and the last knot a time, and check that times grow."""
    ends = []
    for key, default, knot in (("start", 0.0, knots[0]), ("end", 1.0, knots[-1])):
        given = None if entry.get(key) is None else _number(entry[key], f'{place}: "{key}"', 0.0, 1.0)
        if None not in (given, knot.t) and given != knot.t:
            raise ValueError(f'{place}: "{key}" is {given:g}, but that point has "t" {knot.t:g}: give one of them')
        ends.append(next(t for t in (knot.t, given, default) if t is not None))
    if len(knots) == 1:
        return (Knot(knots[0].u, knots[0].v, ends[0]),)
    first, *middle, last = knots
    knots = (Knot(first.u, first.v, ends[0]), *middle, Knot(last.u, last.v, ends[1]))
    times = [knot.t for knot in knots if knot.t is not None]
    if any(earlier >= later for earlier, later in zip(times, times[1:], strict=False)):
        raise ValueError(f"{place}: times must grow from point to point, they are {', '.join(f'{t:g}' for t in times)}")
    return knots


def _region(entry: dict, place: str) -> Region:
    _known(entry, _REGION, place)
    shape = _choice(entry, "shape", SHAPES, place, required=True)
    points = _points(entry, place, timed=False)
    if shape == POLYGON and len(points) < 3:
        raise ValueError(f"{place} is a polygon of {len(points)} points: it needs 3 or more")
    if shape != POLYGON and len(points) != 2:
        raise ValueError(f"{place} is a {shape} of {len(points)} points: it needs 2 opposite corners")
    return Region(shape, points, **_label(entry, place))


def _points(entry: dict, place: str, timed: bool) -> tuple[Knot, ...]:
    points = entry.get("points")
    if not isinstance(points, list):
        raise ValueError(f'{place}: "points" must be a list of {{"u", "v"}}, got {type(points).__name__}')
    knots = []
    for index, point in enumerate(points):
        where = f"{place}.points[{index}]"
        if not isinstance(point, dict):
            raise ValueError(f'{where} must be an object with "u" and "v", got {type(point).__name__}')
        _known(point, ("u", "v", "t", "ui") if timed else ("u", "v", "ui"), where)
        try:
            u, v = (_number(point.get(key), f'{where}: "{key}"', -FAR, 1.0 + FAR) for key in ("u", "v"))
        except ValueError as error:
            raise ValueError(f"{error}. It is a share of the picture's side (0 to 1), not a number of pixels") from None
        t = None if point.get("t") is None else _number(point["t"], f'{where}: "t"', 0.0, 1.0)
        knots.append(Knot(u, v, t))
    return tuple(knots)


def _label(entry: dict, place: str) -> dict:
    name, color = entry.get("name", ""), entry.get("color")
    if not isinstance(name, str):
        raise ValueError(f'{place}: "name" is {name!r}, it must be text')
    if color is not None and not (isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color)):
        raise ValueError(f'{place}: "color" is {color!r}, it must be like "#20c0ff"')
    return {"name": name, "color": color}


def _known(entry: dict, keys: tuple[str, ...], place: str) -> None:
    unknown = [key for key in entry if key not in keys]
    if unknown:
        raise ValueError(f"{place} has {', '.join(map(repr, unknown))}, which version {VERSION} lacks; known: {', '.join(keys)}")


def _choice(entry: dict, key: str, choices: tuple[str, ...], place: str, required: bool = False) -> str:
    value = entry.get(key, None if required else choices[0])
    if value not in choices:
        raise ValueError(f'{place}: "{key}" is {value!r}, choose one of: {", ".join(choices)}')
    return value


def _number(value: object, what: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{what} is {value!r}, it must be a number from {low:g} to {high:g}")
    return float(value)


def _count(value: object, what: str, low: int, high: int) -> int:
    number = _number(value, what, low, high)
    if number != int(number):
        raise ValueError(f"{what} is {value!r}, it must be a whole number")
    return int(number)
