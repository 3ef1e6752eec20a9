"""Heat maps over two sliders, with frames beneath: one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.sheet import tile
from magdiff_core.metrics.canvas import INK, PALE, Canvas

CELL_WIDTH, CELL_HEIGHT = 76, 52
LEFT, TOP, BOTTOM = 88, 42, 50
"""Around the cells of a map, in pixels."""
GAP = 24
TILE = 64
LETTERS = 150
"""Letters of a caption that a line of the default width holds."""
LOW, HIGH = (0.97, 0.98, 1.0), (0.03, 0.28, 0.58)
"""Colours of a share of 0 and of 1, RGB in 0..1."""


@dataclass(frozen=True)
class Cell:
    """share: 0..1, colours the cell and stands in it in percent; note: smaller, beneath it."""

    share: float
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """across, up: name and values of the sliders. cells: by (value across, value up); a place without one stays empty."""

    title: str
    across: tuple[str, Sequence[float]]
    up: tuple[str, Sequence[float]]
    cells: Mapping[tuple[float, float], Cell]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, with axes and title."""
        return LEFT + len(self.across[1]) * CELL_WIDTH, TOP + len(self.up[1]) * CELL_HEIGHT + BOTTOM


@dataclass(frozen=True)
class Strip:
    """Frames `[n, h, w, 3]` in 0..1 with a line of text above them."""

    title: str
    frames: Tensor


def colour_of(share: float) -> str:
    """`#rrggbb` of a share; one outside of 0..1 takes the colour of the nearer end."""
    along = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(255 * (low + (high - low) * along)):02x}" for low, high in zip(LOW, HIGH))


def _draw_map(canvas: Canvas, left: float, top: float, map_: HeatMap) -> None:
    (across, columns), (up, rows) = map_.across, map_.up
    start, first = left + LEFT, top + TOP
    end, last = start + len(columns) * CELL_WIDTH, first + len(rows) * CELL_HEIGHT
    canvas.text(start, top + 10, map_.title, 16)
    for column, x_value in enumerate(columns):
        for row, y_value in enumerate(reversed(rows)):
            x, y = start + column * CELL_WIDTH, first + row * CELL_HEIGHT
            cell = map_.cells.get((x_value, y_value))
            if cell is None:
                canvas.text(x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2, "-", 14, PALE, "mm")
                continue
            canvas.area([(x, y), (x + CELL_WIDTH - 1, y), (x + CELL_WIDTH - 1, y + CELL_HEIGHT - 1), (x, y + CELL_HEIGHT - 1)],
                        colour_of(cell.share))  # fmt: skip
            ink = "white" if cell.share > 0.5 else INK
            middle = y + CELL_HEIGHT / 2
            canvas.text(x + CELL_WIDTH / 2, middle - (8 if cell.note else 0), f"{100 * cell.share:.0f} %", 16, ink, "mm")
            canvas.text(x + CELL_WIDTH / 2, middle + 12, cell.note, 11, ink, "mm")
    for column, value in enumerate(columns):
        canvas.text(start + (column + 0.5) * CELL_WIDTH, last + 6, f"{value:g}", 13, PALE, "ma")
    for row, value in enumerate(reversed(rows)):
        canvas.text(start - 8, first + (row + 0.5) * CELL_HEIGHT, f"{value:g}", 13, PALE, "rm")
    canvas.text((start + end) / 2, last + 25, across, 14, INK, "ma")
    canvas.upright(left + 36, (first + last) / 2, up, 14)


def _draw_strips(canvas: Canvas, top: float, strips: Sequence[Strip], width: int) -> None:
    wide = sum(len(strip.frames) * TILE for strip in strips)
    between = (width - 2 * GAP - wide) / max(1, len(strips) - 1)
    x = float(GAP)
    for strip in strips:
        canvas.text(x, top, strip.title, 12, PALE)
        for frame in strip.frames:
            canvas.picture(x, top + 18, tile(frame, TILE))
            x += TILE
        x += between


def draw_heat_maps(rows: Sequence[Sequence[HeatMap]], strips: Sequence[Strip], caption: Sequence[str], file: Path) -> None:
    """Writes rows of maps, one row of frames beneath them and lines of text at the bottom."""
    width = max(sum(map_.size[0] + GAP for map_ in row) for row in rows) + GAP
    heights = [max(map_.size[1] for map_ in row) for row in rows]
    strip_height = TILE + 18 + GAP if strips else 0
    canvas = Canvas(width, sum(heights) + strip_height + 18 * len(caption) + 16)
    top = 0.0
    for row, height in zip(rows, heights):
        left = 0.0
        for map_ in row:
            _draw_map(canvas, left, top, map_)
            left += map_.size[0] + GAP
        top += height
    if strips:
        _draw_strips(canvas, top + 6, strips, width)
    top += strip_height
    for number, line in enumerate(caption):
        canvas.text(GAP, top + 18 * number, line, 13, PALE)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.smaller().save(file, optimize=True)
