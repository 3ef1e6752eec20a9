"""Pictures that show tracks and regions over the clip, exactly where the motion condition has them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

LONGEST = 768
"""Longest side of the preview in pixels."""
MOST_PIXELS = 150_000_000
"""Pixels of all frames together; long clips are shown smaller."""
TRAIL = 24
"""Frames that the line behind a point reaches back."""
SUPERSAMPLING = 2
REGION = (80, 160, 255)
GROUND = 0.12
"""Grey behind a drawing without a clip."""


def track_colors(count: int, given: Sequence[str | None] = ()) -> list[tuple[int, int, int]]:
    """A colour for each track: the given "#rrggbb", else hues as far from each other as the golden angle puts them."""
    colors = []
    for index in range(count):
        color = given[index] if index < len(given) else None
        hue = colorsys.hsv_to_rgb(0.08 + 0.381966 * index, 0.8, 1.0)
        colors.append(ImageColor.getrgb(color) if color else tuple(round(255 * value) for value in hue))
    return colors


def preview_frames(
    frames: int,
    size: tuple[int, int],
    path: Tensor,
    visibility: Tensor,
    source_frames: Tensor | None = None,
    edit_mask: Tensor | None = None,
    colors: Sequence[str | None] = (),
    each_frame: Callable[[], None] | None = None,
) -> Tensor:
    """`[F, h, w, 3]`, float 0 .. 1; longest side at most 768, less in a clip of many hundred frames.

    In frame j a point is where its track is in frame j, the place at which the motion map of frame j holds the move that led
    there. The line behind it is where it came from; a point that is not visible is a hollow ring, and leaves no line.

    Args:
        frames: F.
        size: (width, height) of the clip in pixels, which `path` counts in.
        path: `[F, N, 2]` (x, y).
        visibility: `[F, N]`.
        source_frames: `[F or 1, H, W, 3]`, float 0 .. 1; dark grey without.
        edit_mask: `[1 or F, H, W]`, 1 = may change; tinted.
        colors: of the tracks, "#rrggbb" or None.
        each_frame: called after each frame.
    """
    scale = min(1.0, LONGEST / max(size), (MOST_PIXELS / (frames * size[0] * size[1])) ** 0.5)
    width, height = (max(1, round(side * scale)) for side in size)
    palette = track_colors(path.shape[1], colors)
    places = (path.double() * path.new_tensor([width / size[0], height / size[1]]).double()).numpy()
    seen = visibility.numpy()
    shown = torch.empty(frames, height, width, 3)
    for index in range(frames):
        if source_frames is None:
            picture = torch.full((height, width, 3), GROUND)
        else:
            picture = _fitted(source_frames[min(index, len(source_frames) - 1)].movedim(-1, 0), height, width).movedim(0, -1)
        if edit_mask is not None:
            inside = _fitted(edit_mask[min(index, len(edit_mask) - 1)][None], height, width)
            picture = _tinted(picture, inside[0])
        shown[index] = _with_tracks(picture, places, seen, index, palette)
        if each_frame is not None:
            each_frame()
    return shown


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """`[C, H, W]` at another size, in 0 .. 1."""
    picture = picture.float()
    if picture.shape[-2:] != (height, width):
        picture = interpolate(picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return picture.clamp(0.0, 1.0)


def _tinted(picture: Tensor, inside: Tensor) -> Tensor:
    """The region in blue, with its outline."""
    blue = picture.new_tensor(REGION) / 255
    border = (max_pool2d(inside[None], 3, 1, 1)[0] > 0.5) & (inside <= 0.5)
    share = torch.where(border, 1.0, 0.3 * inside)[..., None]
    return picture * (1.0 - share) + blue * share


def _with_tracks(picture: Tensor, places: np.ndarray, seen: np.ndarray, index: int, palette: list) -> Tensor:
    height, width = picture.shape[:2]
    if places.shape[1] == 0:
        return picture
    layer = Image.new("RGBA", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(layer)
    radius = max(3.0, 0.008 * max(width, height)) * SUPERSAMPLING
    for track, color in enumerate(palette):
        for step in range(max(1, index - TRAIL), index + 1):
            if seen[step, track] and seen[step - 1, track]:
                age = (index - step) / TRAIL
                ends = [tuple(places[at, track] * SUPERSAMPLING) for at in (step - 1, step)]
                draw.line(ends, fill=(*color, round(255 * (1.0 - 0.8 * age))), width=max(1, round(radius / 2)))
        x, y = places[index, track] * SUPERSAMPLING
        box = (x - radius, y - radius, x + radius, y + radius)
        if seen[index, track]:
            draw.ellipse(box, fill=(*color, 255), outline=(0, 0, 0, 255), width=SUPERSAMPLING)
        else:
            draw.ellipse(box, outline=(*color, 255), width=SUPERSAMPLING)
    drawn = torch.from_numpy(np.asarray(layer.resize((width, height), Image.Resampling.BOX), np.float32)) / 255
    return picture * (1.0 - drawn[..., 3:]) + drawn[..., :3] * drawn[..., 3:]
