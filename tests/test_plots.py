"""Plots show the numbers that they were given: where lines and bars stand, not that there is a picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from magdiff_core.data.curation.chart import COLOURS as PANEL_COLOURS
from magdiff_core.data.curation.chart import PANEL, draw_statistics
from magdiff_core.data.curation.figures import Figures
from magdiff_core.metrics.evaluation import Evaluation, Models
from magdiff_core.metrics.plot import COLOURS, HEADER, draw_plot
from magdiff_core.metrics.plot import PANEL as PLOT_PANEL


def places(picture: np.ndarray, colour: str, top: int = 0) -> np.ndarray:
    """`[n, 2]` rows and columns of the pixels of a colour."""
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    found = np.argwhere(np.abs(picture.astype(int) - wanted).max(-1) < 12)
    return found[found[:, 0] >= top]


def evaluation(**clips) -> Evaluation:
    result = Evaluation(Models(), sizes=[(4, 40, 56)] * len(next(iter(clips.values()))))
    for name, by_clip in clips.items():
        result.clips[name] = [(sum(values) / len(values), values) for values in by_clip]
        result.value[name] = result.clips[name][0][0]
    return result


def plotted(**clips) -> np.ndarray:
    return (draw_plot(evaluation(**clips))[0] * 255).round().to(torch.uint8).numpy()


def heights(picture: np.ndarray, colour: str, frames: int, top: int) -> list[float]:
    """Rows of the dots at each frame: the line's lowest column is frame 0, its highest the last one."""
    found = places(picture, colour, top)
    left, right = found[:, 1].min() + 3, found[:, 1].max() - 3
    columns = np.linspace(left, right, frames).round()
    return [float(np.median(found[np.abs(found[:, 1] - column) <= 1][:, 0])) for column in columns]


def test_a_line_goes_through_its_values():
    values = [20.0, 30.0, 25.0, 25.0]
    rows = heights(plotted(psnr=[values]), COLOURS[0], 4, HEADER)
    assert rows[1] < rows[2] < rows[0], "larger values stand higher"
    assert rows[2] == pytest.approx((rows[0] + rows[1]) / 2, abs=2) and rows[3] == pytest.approx(rows[2], abs=1)


def test_every_metric_has_a_panel_and_every_clip_a_line():
    rising, falling = [20.0, 22.0, 24.0, 26.0], [26.0, 24.0, 22.0, 20.0]
    picture = plotted(psnr=[rising, falling], textual_alignment=[[0.2] * 4, [0.3] * 4])
    one_panel = plotted(psnr=[rising, falling])
    assert picture.shape[0] == one_panel.shape[0] + PLOT_PANEL
    top = HEADER + 28  # below the legend
    first, second = (heights(one_panel, colour, 4, top) for colour in COLOURS[:2])
    assert first == sorted(first, reverse=True) and second == sorted(second)
    below = top + PLOT_PANEL
    flat = [heights(picture, colour, 4, below) for colour in COLOURS[:2]]
    assert np.ptp(flat[0]) <= 1 and np.ptp(flat[1]) <= 1 and flat[0][0] > flat[1][0] + 20


def bar_heights(picture: np.ndarray, number: int) -> list[int]:
    """Heights in pixels of the bars of one panel, from left to right."""
    panel = picture[:, number * PANEL : (number + 1) * PANEL]
    found = places(panel, PANEL_COLOURS[number])
    columns = np.bincount(found[:, 1], minlength=PANEL)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (columns > 4).astype(int), [0]])))
    return [int(np.median(columns[start:end])) for start, end in edges.reshape(-1, 2)]


def test_the_statistics_of_the_curation_stand_as_bars():
    figures = Figures(
        caption_words=(4, 4, 4, 5), seconds=(2.0, 3.5, 3.9, 5.0), categories=Counter(person=3, animal=1), labels=Counter(),
        dropped=Counter(), unfinished=0, ready=4,
    )  # fmt: skip
    picture = np.asarray(draw_statistics(figures).convert("RGB"))
    for number, counts in enumerate(([3, 1], [3, 1], [1, 2, 1])):  # words 4 and 5; categories; seconds 2, 3 and 5
        bars = bar_heights(picture, number)
        assert len(bars) == len(counts) and min(bars) > 10
        assert [bar / max(bars) for bar in bars] == pytest.approx([count / max(counts) for count in counts], abs=0.02)
    nothing = Figures((), (), Counter(), Counter(), Counter({("masks", "area"): 2}), 0, 0)
    assert all(not bar_heights(np.asarray(draw_statistics(nothing).convert("RGB")), number) for number in range(3))
