"""The loss over the steps of a training, read from its log, as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

WIDTH, HEIGHT = 768, 320
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 36, 40
LINE, INK, PALE, GRID = "#1f6fb4", "#222222", "#666666", "#dddddd"


def read_losses(log: Path) -> list[tuple[int, float]]:
    """(step, smoothed loss) of each line of `log.jsonl`, by step; of steps that were taken twice the last one."""
    if not log.is_file():
        return []
    losses = {}
    for line in log.read_text("utf-8").splitlines():
        try:
            entry = json.loads(line)
            losses[int(entry["step"])] = float(entry["loss"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill cut short
    return sorted(losses.items())


def draw_losses(losses: list[tuple[int, float]]) -> Tensor:
    """IMAGE `[1, 320, 768, 3]` in 0..1."""
    import numpy
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    end, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    draw.text((LEFT, 10), f"loss, step {losses[-1][0]}: {losses[-1][1]:.4f}" if losses else "no step yet", INK, font)
    if losses:
        steps, values = zip(*losses)
        low, high = min(values), max(values)
        margin = max(0.08 * (high - low), 0.01 * abs(high), 1e-6)
        low, high = low - margin, high + margin
        first, last = steps[0], max(steps[-1], steps[0] + 1)

        def place(step: float, value: float) -> tuple[float, float]:
            across = LEFT + (step - first) / (last - first) * (end - LEFT)
            return across, floor - (value - low) / (high - low) * (floor - TOP)

        for part in range(5):
            value = low + (high - low) * part / 4
            y = place(first, value)[1]
            draw.line([(LEFT, y), (end, y)], GRID)
            draw.text((LEFT - 8, y), f"{value:.4f}", PALE, font, anchor="rm")
            step = first + (last - first) * part / 4
            draw.text((place(step, low)[0], floor + 8), f"{step:.0f}", PALE, font, anchor="ma")
        points = [place(*entry) for entry in losses]
        draw.line(points, LINE, 2, joint="curve")
        x, y = points[-1]
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], LINE)
    draw.line([(LEFT, TOP), (LEFT, floor), (end, floor)], INK)
    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)[None]
