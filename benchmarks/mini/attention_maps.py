"""Where the motion word and the shape word are read, for adaptive and for fixed weights of text and picture (MagDiff, Fig. 7).

Run: python dev.py run -m benchmarks.mini.attention_maps [--models DIR] [--fixed DIR] [--clips 16] [--seed 1] [--out DIR]

Held-out cases. Softmax weights of the text stream, mean over heads, all cross-attentions and the middle fifth of 25 steps, CFG 1.
Focus ratio: the share of a word's attention on the subject of the produced clip over the subject's share of the area. The table
also holds each cross-attention alone, with the share of its attention that a word gets.
"fixed" is the pair of files in --fixed, trained with both weights at 1; without it the same pair with its learned weights replaced
by 1 (mode fixed of APA Conditioning). The word for the background's colour is measured for comparison. Writes results.json and
attention_maps.png. Exit status: 0, or 2 when a model file is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sheet import tile
from benchmarks.spread import standard_error
from magdiff_core.alignment.apa import ADAPTIVE, FIXED
from magdiff_core.data.procedural import COLOURS, MOTIONS
from magdiff_core.data.sprites import SHAPES
from magdiff_core.metrics.canvas import INK, PALE, Canvas
from magdiff_core.metrics.clip import split_clip

from .cases import Case, make_cases
from .options import add_bfloat16, add_options, parse
from .pipeline import MissingModel, Pipeline
from .text_attention import by_site, focus, observe, over_sites, word_places

STEPS, CFG = 25, 1.0
MIDDLE = slice(10, 15)
"""Steps whose weights are averaged."""
WORDS = ("shape", "motion", "background")
DRAWN_WORDS = ("shape", "motion")
DRAWN_CASES = 3
DRAWN_FRAMES = (0, 2, 5, 7)
TILE, GAP, LABELS = 64, 3, 118


@dataclass(frozen=True)
class Seen:
    """One clip: frames `[F, h, w, 3]` in 0..1; maps by word kind `[F, h', w']`; focus by word kind, as `focus` of text_attention
    gives it; sites: for each cross-attention and word kind the word's share of all attention, and its focus."""

    frames: Tensor
    maps: dict[str, Tensor]
    focus: dict[str, tuple[float, float] | None]
    sites: dict[str, dict[str, tuple[float, tuple[float, float] | None]]]


def ratio(found: tuple[float, float] | None) -> float | None:
    """Focus ratio; None where the clip shows no subject."""
    return None if found is None else found[0] / found[1]


def phrases(case: Case) -> dict[str, str]:
    """The words of the prompt that are looked at, by kind."""
    shape = next(word for word in case.prompt.split() if word in SHAPES)
    return {"shape": shape, "motion": MOTIONS[case.motion], "background": COLOURS[case.background_colour]}


def see(case: Case, frames: Tensor, weights: dict[str, Tensor]) -> Seen:
    """Frames `[F, H, W, 3]` and the attention weights `[F, h, w, L]` of each site -> maps and focus of the words of a clip."""
    subject_mask, _ = split_clip(frames)
    places = {kind: word_places(case.prompt, phrase) for kind, phrase in phrases(case).items()}
    of_sites = {site: {kind: of_site[..., place].sum(-1) for kind, place in places.items()} for site, of_site in weights.items()}
    maps = {kind: over_sites([words[kind] for words in of_sites.values()]) for kind in places}
    return Seen(
        frames,
        maps,
        {kind: focus(attention, subject_mask) for kind, attention in maps.items()},
        {
            site: {kind: (float(attention.mean()), focus(attention, subject_mask)) for kind, attention in words.items()}
            for site, words in of_sites.items()
        },
    )


def watch(pipeline: Pipeline, cases: Sequence[Case], seed: int, mode: str) -> list[Seen]:
    """Makes the clips of `cases` with mode `mode` of APA Conditioning and looks at their words."""
    plain, seen = pipeline.base_model, []
    for index, case in enumerate(cases):
        pipeline.base_model, observers = observe(plain)
        frames = pipeline.make(
            case.prompt, case.source[:1], case.source_mask[:1], len(case.target), seed=seed + index, steps=STEPS, cfg=CFG,
            alpha_mode=mode,
        )  # fmt: skip
        seen.append(see(case, frames, by_site(observers, MIDDLE, *frames.shape[1:3])))
        print(f"{mode}: {index + 1} of {len(cases)} clips", file=sys.stderr, flush=True)
    pipeline.base_model = plain
    return seen


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; NaN of no value, no error of a single one."""
    if not values:
        return math.nan, None
    return sum(values) / len(values), standard_error(values)


def _cell(found: Sequence[tuple[float, float] | None]) -> dict:
    ratios = [value for value in map(ratio, found) if value is not None]
    mean, error = mean_and_error(ratios)
    return {"mean": mean, "error": error, "clips": len(ratios)}


def summary(seen: Sequence[Seen]) -> dict[str, dict]:
    """Focus ratio by word kind: mean and standard error over the clips that show a subject, how many those are, and the same for
    each cross-attention alone, with the word's share of all attention there."""
    table = {}
    for kind in WORDS:
        sites = {}
        for site in seen[0].sites:
            found = [clip.sites[site][kind] for clip in seen]
            sites[site] = {"share": sum(share for share, _ in found) / len(found), **_cell([focused for _, focused in found])}
        table[kind] = {**_cell([clip.focus[kind] for clip in seen]), "sites": sites}
    return table


def heat(attention: Tensor) -> Tensor:
    """A map `[h, w]` in 0..1 as colours `[h, w, 3]`: black, red, yellow, white."""
    return torch.stack([(3 * attention - channel).clamp(0, 1) for channel in range(3)], -1)


def _draw_clip(canvas: Canvas, left: float, top: float, seen: Seen) -> None:
    for column, frame in enumerate(DRAWN_FRAMES):
        x = left + column * (TILE + GAP)
        canvas.picture(x, top, tile(seen.frames[frame], TILE))
        for row, kind in enumerate(DRAWN_WORDS, start=1):
            attention = seen.maps[kind]
            canvas.picture(x, top + row * (TILE + GAP), tile(heat(attention[frame] / attention.max()), TILE))


def draw(cases: Sequence[Case], columns: dict[str, Sequence[Seen]], caption: Sequence[str], file: Path) -> None:
    """Writes the first few clips: frames, beneath them the maps of the shape and the motion word, one column of clips a model."""
    drawn = min(DRAWN_CASES, len(cases))
    wide = len(DRAWN_FRAMES) * (TILE + GAP)
    step = wide + LABELS
    tall = (1 + len(DRAWN_WORDS)) * (TILE + GAP) + 40
    canvas = Canvas(LABELS + step * len(columns), 34 + drawn * tall + 18 * len(caption) + 12)
    for number, (name, seen) in enumerate(columns.items()):
        left = LABELS + number * step
        canvas.text(left, 8, name, 16)
        for index in range(drawn):
            top = 34 + index * tall
            if number == 0:
                canvas.text(12, top, f'"{cases[index].prompt}"', 13)
            _draw_clip(canvas, left, top + 20, seen[index])
            for row, kind in enumerate(DRAWN_WORDS, start=1):
                value, middle = ratio(seen[index].focus[kind]), top + 20 + row * (TILE + GAP) + TILE / 2
                canvas.text(left - 10, middle - 8, phrases(cases[index])[kind], 13, INK, "rm")
                shown = "no subject" if value is None else f"focus {value:.2f}"
                canvas.text(left - 10, middle + 9, shown, 12, PALE, "rm")
    for number, line in enumerate(caption):
        canvas.text(12, 34 + drawn * tall + 18 * number, line, 13, PALE)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.smaller().save(file, optimize=True)


def _describe(name: str, table: dict[str, dict]) -> str:
    cells = []
    for kind, cell in table.items():
        error = "" if cell["error"] is None else f"±{cell['error']:.2f}"
        cells.append(f"{kind} word {cell['mean']:.2f}{error}")
    return f"{name}: {', '.join(cells)} ({table['shape']['clips']} clips with a subject)"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.mini.attention_maps", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, 16, "a model", "output/attention_maps", "table and picture")
    add_bfloat16(parser)
    parser.add_argument("--fixed", type=Path, help="folder with a pair trained with both weights fixed at 1")
    options = parse(parser)
    cases = make_cases(options.clips, options.seed)
    fixed = "fixed, trained so" if options.fixed else "fixed, learned weights replaced by 1"
    try:
        pipeline = Pipeline(options.models, options.bfloat16)
        columns = {"adaptive": watch(pipeline, cases, options.seed, ADAPTIVE)}
        if options.fixed:
            # Both pairs have the same file names, so that one is done with before the other is found.
            pipeline = Pipeline(options.fixed, options.bfloat16)
        columns[fixed] = watch(pipeline, cases, options.seed, FIXED)
    except MissingModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tables = {name: summary(seen) for name, seen in columns.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    results = {
        "settings": {"clips": options.clips, "seed": options.seed, "steps": STEPS, "cfg": CFG, "bfloat16": options.bfloat16},
        "focus ratio": tables,
        "clips": [
            {"prompt": case.prompt, "words": phrases(case)}
            | {
                name: {kind: found and {"inside": found[0], "area": found[1]} for kind, found in seen[index].focus.items()}
                for name, seen in columns.items()
            }
            for index, case in enumerate(cases)
        ],
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    lines = [_describe(name, table) for name, table in tables.items()]
    caption = [
        "Each map is scaled to its largest weight. Focus: attention on the subject over the subject's share of the area (1: none).",
        *(f"Mean focus, {line}" for line in lines),
    ]
    draw(cases, columns, caption, options.out / "attention_maps.png")
    print("\n".join(["focus ratio", *lines, f"results.json and attention_maps.png are in {options.out.resolve()}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
