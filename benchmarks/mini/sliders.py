"""What the two sliders of APA Conditioning do: text following against subject fidelity over alpha_text and alpha_image.

Run: python dev.py run -m benchmarks.mini.sliders --clips 12 --seed 1 [--models DIR] [--out DIR] [--bfloat16] [--threads T]

Held-out cases, the same cases and noises in every cell, 15 steps, CFG 1. Text following is the mean of two hits, motion and
background colour; subject fidelity is how often the given subject explains the clip better than 7 others, with the RMSE inside its
outline beneath. alpha_image is measured once more with pyramid_strength 0, where only cross-attention carries the subject. Writes
results.json and sliders.png. Exit status: 0, or 2 when a model file is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from benchmarks.heat_map import Cell, HeatMap, Strip, draw_heat_maps
from benchmarks.spread import standard_error
from magdiff_core.data.procedural import COLOURS, MOTIONS

from . import rows as table
from .cases import OTHERS, Case, make_cases
from .options import add_bfloat16, add_options, parse
from .pipeline import MissingModel, Pipeline

ALPHA_TEXT = (0.0, 0.5, 1.0, 2.0, 3.0)
ALPHA_IMAGE = (0.0, 1.0, 3.0)
STEPS, CFG = 15, 1.0
SHOWN_FRAMES = (0, 4, 7)
"""Frames of a clip in the strip."""

Point = tuple[float, float, float]
"""pyramid_strength, alpha_text, alpha_image."""


def points() -> list[Point]:
    """Everything that is measured; both sliders at 0 would leave cross-attention empty, and the node refuses it."""
    return [(1.0, text, image) for image in ALPHA_IMAGE for text in ALPHA_TEXT if text or image] + tokens_alone()


def tokens_alone() -> list[Point]:
    """alpha_image without the subject's latents, with the text as learned."""
    return [(0.0, 1.0, image) for image in ALPHA_IMAGE]


def sweep(
    make: Callable[[Case, int, Point], Tensor],
    cases: Sequence[Case],
    seed: int,
    at: Sequence[Point],
    progress: Callable[[int, int], None],
) -> dict[Point, table.Row]:
    """Measures every case at every point; `make(case, seed of its noise, point)` gives a clip. Rows keep the first case's."""
    rows = {}
    for number, point in enumerate(at):
        rows[point] = table.Row()
        for index, case in enumerate(cases):
            table.measure(rows[point], table.GENERATE_ROW, case, make(case, seed + index, point), index == 0)
        progress(number + 1, len(at))
    return rows


def text_following(row: table.Row) -> float:
    """Mean of the hits of motion and background colour, 0..1."""
    return (row.mean("motion") + row.mean("background")) / 2


def text_error(row: table.Row) -> float:
    """Standard error of `text_following` over clips; NaN for one clip."""
    clips = [(motion + background) / 2 for motion, background in zip(row.motion, row.background)]
    error = standard_error(clips)
    return math.nan if error is None else error


def summary(rows: Mapping[Point, table.Row]) -> list[dict]:
    """One entry a point: its sliders, text following and the measurements of the benchmark with their standard errors."""
    entries = []
    for (pyramid, text, image), row in rows.items():
        error = text_error(row)
        following = {"mean": text_following(row), "error": None if math.isnan(error) else error}
        entries.append(
            {"pyramid_strength": pyramid, "alpha_text": text, "alpha_image": image, "text_following": following, **row.summary()}
        )
    return entries


def _text_cell(row: table.Row) -> Cell:
    return Cell(text_following(row), f"{100 * row.mean('motion'):.0f} / {100 * row.mean('background'):.0f}")


def _subject_cell(row: table.Row) -> Cell:
    return Cell(row.mean("nearest"), f"{row.mean('subject_rmse'):.3f}")


def heat_maps(rows: Mapping[Point, table.Row]) -> list[HeatMap]:
    """Text following and subject fidelity of the whole adapter."""
    measures = {"text following (motion / background)": _text_cell, "subject fidelity (RMSE)": _subject_cell}
    return [
        HeatMap(
            measure,
            ("alpha_text", ALPHA_TEXT),
            ("alpha_image", ALPHA_IMAGE),
            {(text, image): cell(row) for (pyramid, text, image), row in rows.items() if pyramid},
        )
        for measure, cell in measures.items()
    ]


def corners() -> list[Point]:
    """What the strip shows: little and much of either, much of both, and both as learned."""
    most_text, most_image = ALPHA_TEXT[-1], ALPHA_IMAGE[-1]
    return [(1.0, 0.0, most_image), (1.0, 1.0, 1.0), (1.0, most_text, 0.0), (1.0, most_text, most_image)]


def strips(rows: Mapping[Point, table.Row], case: Case) -> list[Strip]:
    """The given subject, and the first case's clips at `corners()`."""
    shown = [
        Strip(f"alpha_text {text:g}, alpha_image {image:g}", rows[pyramid, text, image].clips[0][list(SHOWN_FRAMES)])
        for pyramid, text, image in corners()
    ]
    return [Strip("given", (case.source[0] * case.source_mask[0, ..., None])[None]), *shown]


def caption(rows: Mapping[Point, table.Row], cases: Sequence[Case], seed: int) -> list[str]:
    """What stands beneath the maps."""
    text, subject = 50 * (1 / len(MOTIONS) + 1 / len(COLOURS)), 100 / (OTHERS + 1)
    alone = [rows[point] for point in tokens_alone()]
    values = " / ".join(f"{image:g}" for image in ALPHA_IMAGE)
    nearest = " / ".join(f"{100 * row.mean('nearest'):.0f}" for row in alone)
    errors = " / ".join(f"{row.mean('subject_rmse'):.3f}" for row in alone)
    return [
        f"{len(cases)} held-out clips a cell (seed {seed}), the same noise in every cell, {STEPS} steps, CFG {CFG:g}. By chance: "
        f"text {text:.0f} %, subject {subject:.1f} %. Subject: nearer to the given one than to {OTHERS} others.",
        f"With pyramid_strength 0, alpha_text 1 and alpha_image {values}: subject {nearest} %, RMSE {errors}.",
        f'Frames {", ".join(str(frame + 1) for frame in SHOWN_FRAMES)} of "{cases[0].prompt}".',
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mini.sliders", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, 12, "a cell", "output/sliders", "results.json and sliders.png")
    add_bfloat16(parser)
    options = parse(parser)
    try:
        pipeline = Pipeline(options.models, options.bfloat16)
    except MissingModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cases = make_cases(options.clips, options.seed)
    started = time.perf_counter()

    def make(case: Case, seed: int, point: Point) -> Tensor:
        pyramid, text, image = point
        return pipeline.make(
            case.prompt, case.source[:1], case.source_mask[:1], len(case.target), seed=seed, steps=STEPS, cfg=CFG,
            alpha_text=text, alpha_image=image, pyramid_strength=pyramid,
        )  # fmt: skip

    def progress(done: int, count: int) -> None:
        print(f"{done} of {count} cells, {time.perf_counter() - started:.0f} s so far", file=sys.stderr, flush=True)

    rows = sweep(make, cases, options.seed, points(), progress)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {
        "settings": {
            "clips": options.clips, "seed": options.seed, "steps": STEPS, "cfg": CFG, "bfloat16": options.bfloat16
        },
        "cells": summary(rows),
    }  # fmt: skip
    (options.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    draw_heat_maps([heat_maps(rows)], strips(rows, cases[0]), caption(rows, cases, options.seed), options.out / "sliders.png")
    print(f"results.json and sliders.png are in {options.out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
