"""The statistics of Fig. C as a picture: caption lengths, entity categories, clip durations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .figures import Figures

PANEL, HEIGHT, HEADER = 400, 340, 48
"""Width of a panel, height of the picture and of its heading, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 44, 62
"""Around the axes of a panel."""
SCALE = 2
"""Drawn larger and made smaller, which smooths the letters."""
MOST_BARS, WIDEST_BAR = 16, 64
COLOURS = ("#1f6fb4", "#2a9d5c", "#d95f02")
INK, PALE, GRID = "#222222", "#666666", "#dddddd"


def bars_of(values: Sequence[float], most: int = MOST_BARS) -> list[tuple[str, int]]:
    """A histogram with round steps (1, 2, 5, 10, ...): (name of the bar, count), without gaps. Names are "4" or "4-5"."""
    if not values:
        return []
    step, factors = 1, (2, 2.5, 2)
    low, high = math.floor(min(values)), math.floor(max(values))
    for turn in range(64):
        if high // step - low // step < most:
            break
        step = int(step * factors[turn % 3])
    first = low // step
    counts = [0] * (high // step - first + 1)
    for value in values:
        counts[math.floor(value) // step - first] += 1
    starts = [(first + number) * step for number in range(len(counts))]
    names = [str(start) if step == 1 else f"{start}-{start + step - 1}" for start in starts]
    return list(zip(names, counts))


class _Panel:
    """One bar chart."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: int) -> None:
        self.draw, self.left = draw, left

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        place = ((self.left + x) * SCALE, y * SCALE)
        self.draw.text(place, text, fill=colour, font=ImageFont.load_default(size * SCALE), anchor=anchor)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        points = [((self.left + x) * SCALE, y * SCALE) for x, y in ((x0, y0), (x1, y1))]
        self.draw.line(points, fill=colour, width=SCALE)

    def bars(self, title: str, unit: str, bars: Sequence[tuple[str, int]], colour: str) -> None:
        floor, ceiling, end = HEIGHT - BOTTOM, HEADER + TOP, PANEL - RIGHT
        self.text((LEFT + end) / 2, HEADER + 16, title, 15, INK, "mm")
        self.text((LEFT + end) / 2, HEIGHT - 16, unit, 13, PALE, "mm")
        if not bars:
            self.text((LEFT + end) / 2, (floor + ceiling) / 2, "no clip was kept", 14, PALE, "mm")
            return
        most = max(count for _, count in bars)
        step = next(10**power * factor for power in range(12) for factor in (1, 2, 5) if 10**power * factor * 5 >= most)
        for tick in range(0, most + 1, step):
            height = floor - (floor - ceiling) * tick / most
            self.line(LEFT, height, end, height, GRID)
            self.text(LEFT - 7, height, str(tick), 12, PALE, "rm")
        width = (end - LEFT) / len(bars)
        # names that would run into each other are left out evenly
        longest = max(len(name) for name, _ in bars) * 7 + 8
        every = max(1, math.ceil(longest / width))
        for number, (name, count) in enumerate(bars):
            x = LEFT + number * width
            half = min(0.4 * width, WIDEST_BAR / 2)
            middle = x + width / 2
            box = (middle - half, floor - (floor - ceiling) * count / most, middle + half, floor)
            shifted = [(edge + (self.left if place % 2 == 0 else 0)) * SCALE for place, edge in enumerate(box)]
            if count:
                self.draw.rectangle(shifted, fill=colour)
            if number % every == 0:
                self.text(middle, floor + 8, name, 12, PALE, "ma")
        self.line(LEFT, floor, end, floor, INK)


def draw_statistics(figures: Figures) -> Image.Image:
    """Three bar charts of the clips that were kept (MagDiff supplement, Fig. C)."""
    image = Image.new("RGB", (3 * PANEL * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(image)
    heading = f"{figures.kept} clips kept, {figures.dropped.total()} dropped"
    _Panel(draw, 0).text(LEFT, 24, heading, 18, INK, "lm")
    panels = (
        ("Caption length", "words", bars_of(figures.caption_words)),
        ("Entity category", "category of the label", figures.categories.most_common()),
        ("Clip duration", "seconds", bars_of(figures.seconds)),
    )
    for number, ((title, unit, bars), colour) in enumerate(zip(panels, COLOURS)):
        _Panel(draw, number * PANEL).bars(title, unit, bars, colour)
    return image.resize((3 * PANEL, HEIGHT), Image.Resampling.LANCZOS)
