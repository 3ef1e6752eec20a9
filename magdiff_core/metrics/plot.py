"""The values of each frame as a picture: one panel a metric, one line a clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .canvas import INK, PALE, Canvas
from .evaluation import METRICS, Evaluation

WIDTH = 960
PANEL = 210
HEADER = 44
ROW = 20
LEFT, RIGHT, TOP, BOTTOM = 96, 24, 34, 44
"""Around the axes of a panel, in pixels."""
MOST_LINES = 6
"""Clips that get a line of their own; of more, the mean and the range are drawn."""
COLOURS = ("#1f6fb4", "#d95f02", "#2a9d5c", "#c23b7a", "#7a5ac2", "#8a6d3b")
GRID = "#dddddd"


@dataclass(frozen=True)
class _Axis:
    """A straight map from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _value_axis(values: list[float], start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    # A still line must not fill the panel with rounding noise.
    margin = max((high - low) * 0.12, abs(high) * 0.005, 1e-3)
    low, high = low - margin, high + margin
    return _Axis(low, high, start, end, _ticks(low, high, 4))


def _tick_text(value: float, ticks: tuple[float, ...]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _shown(name: str, evaluation: Evaluation) -> str:
    value, metric = evaluation.value[name], METRICS[name]
    number = "none" if math.isnan(value) else f"{value:.{3 if 'cosine' in metric.unit else 2}f}"
    return f"{number} dB" if metric.unit == "dB" else number


def _segments(values: list[float]) -> list[list[int]]:
    """Runs of frames that have a value."""
    runs: list[list[int]] = [[]]
    for index, value in enumerate(values):
        if math.isnan(value):
            runs.append([])
        else:
            runs[-1].append(index)
    return [run for run in runs if run]


def _draw_line(canvas: Canvas, across: _Axis, up: _Axis, values: list[float], colour: str) -> None:
    for run in _segments(values):
        points = [(across.at(index), up.at(values[index])) for index in run]
        if len(points) > 1:
            canvas.line(points, colour, 2)
        if len(values) <= 40 or len(points) == 1:
            for x, y in points:
                canvas.dot(x, y, colour)


def _draw_range(canvas: Canvas, across: _Axis, up: _Axis, clips: list[list[float]]) -> None:
    longest = max(map(len, clips))
    columns = [[clip[index] for clip in clips if index < len(clip) and not math.isnan(clip[index])] for index in range(longest)]
    known = [(index, column) for index, column in enumerate(columns) if column]
    upper = [(across.at(index), up.at(max(column))) for index, column in known]
    lower = [(across.at(index), up.at(min(column))) for index, column in known]
    if len(known) > 1:
        canvas.area(upper + lower[::-1], "#cfe0f0")
    means = [sum(column) / len(column) if column else math.nan for column in columns]
    _draw_line(canvas, across, up, means, COLOURS[0])


def _draw_panel(canvas: Canvas, top: float, name: str, evaluation: Evaluation) -> None:
    metric = METRICS[name]
    clips = [by_frame for _, by_frame in evaluation.clips[name]]
    values = [value for clip in clips for value in clip if not math.isnan(value)]
    floor, ceiling, end = top + PANEL - BOTTOM, top + TOP, WIDTH - RIGHT
    canvas.text(LEFT, top + 8, metric.title, 15)
    canvas.text(end, top + 8, f"overall {_shown(name, evaluation)}", 15, anchor="ra")
    canvas.text((LEFT + end) / 2, floor + 24, "frame", 13, PALE, "ma")
    canvas.upright(22, (floor + ceiling) / 2, metric.unit)
    last = max(map(len, clips)) - 1
    padding = 0.5 if last else 1.0
    frames = _ticks(0, max(last, 1), 12)
    across = _Axis(-padding, last + padding, LEFT, end, tuple(tick for tick in frames if tick == int(tick) and tick <= last))
    if values:
        up = _value_axis(values, floor, ceiling)
        for tick in up.ticks:
            canvas.line([(LEFT, up.at(tick)), (end, up.at(tick))], GRID)
            canvas.text(LEFT - 8, up.at(tick), _tick_text(tick, up.ticks), 12, PALE, "rm")
        if len(clips) > MOST_LINES:
            _draw_range(canvas, across, up, clips)
        else:
            for clip, colour in zip(clips, COLOURS):
                _draw_line(canvas, across, up, clip, colour)
    else:
        canvas.text((LEFT + end) / 2, (floor + ceiling) / 2, "no frame has a value", 14, PALE, "mm")
    canvas.line([(LEFT, ceiling), (LEFT, floor), (end, floor)], INK)
    for tick in across.ticks:
        canvas.line([(across.at(tick), floor), (across.at(tick), floor + 4)], INK)
        canvas.text(across.at(tick), floor + 7, f"{tick:.0f}", 12, PALE, "ma")


def _draw_legend(canvas: Canvas, y: float, clips: int) -> None:
    if clips > MOST_LINES:
        canvas.area([(LEFT, y - 6), (LEFT + 24, y - 6), (LEFT + 24, y + 6), (LEFT, y + 6)], "#cfe0f0")
        canvas.line([(LEFT, y), (LEFT + 24, y)], COLOURS[0], 2)
        canvas.text(LEFT + 32, y, f"mean and range of {clips} clips", 13, anchor="lm")
        return
    for number in range(clips):
        x = LEFT + number * 110
        canvas.line([(x, y), (x + 24, y)], COLOURS[number], 2)
        canvas.dot(x + 12, y, COLOURS[number])
        canvas.text(x + 32, y, f"clip {number + 1}", 13, anchor="lm")


def draw_plot(evaluation: Evaluation) -> Tensor:
    """A panel for each metric that frames have, over the frame number; values of the whole set are written above.

    Args:
        evaluation: as `Evaluator.finish` gives it.

    Returns:
        IMAGE `[1, H, 960, 3]` in 0..1.
    """
    panels = [name for name, metric in METRICS.items() if metric.per_frame and name in evaluation.value]
    of_set = [name for name, metric in METRICS.items() if not metric.per_frame and name in evaluation.value]
    count = len(evaluation.sizes)
    legend = ROW + 8 if count > 1 and panels else 0
    height = HEADER + len(of_set) * ROW + (6 if of_set else 0) + legend + len(panels) * PANEL + 8
    canvas = Canvas(WIDTH, height)
    sizes = {f"{width}x{tall}" for _, tall, width in evaluation.sizes}
    canvas.text(LEFT, 14, f"{count} {'clip' if count == 1 else 'clips'}, {', '.join(sorted(sizes)[:3])}", 17)
    top = HEADER
    for name in of_set:
        canvas.text(LEFT, top, f"{METRICS[name].title}: {_shown(name, evaluation)}", 15)
        top += ROW
    top += 6 if of_set else 0
    if legend:
        _draw_legend(canvas, top + ROW / 2, count)
        top += legend
    for name in panels:
        _draw_panel(canvas, top, name, evaluation)
        top += PANEL
    return canvas.finished()
