"""How good the small model is, measured through the shipped nodes and ComfyUI's sampler.

Run: python dev.py run -m benchmarks.mini --clips 64 --seed 1 [--steps 25] [--cfg 1] [--models DIR] [--out DIR] [--threads T]

Held-out (shape, colour) and (background, pattern) pairs; the prompt's background and motion differ from the picture's. Rows:
true pixels and the autoencoder alone are the ceiling; "shuffled subject" gets another subject's picture under the same
prompt, still measured against its own subject; "edit" keeps a clip's subject and changes the background, "replace subject" keeps
the background and asks for another subject. Two sets of bars are printed; the first decides the exit status, the second is what
the model is to grow to. Writes results.json and the sheets. Exit status: 0 when every bar of the first set holds, 1 when one does
not, 2 when a model file is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from benchmarks.sheet import SheetRow, draw_sheet
from magdiff_core.data.procedural import COLOURS, MOTIONS, PATTERNS
from magdiff_core.host import session

from . import rows as table
from .bars import GROWN_CLIPS, GROWN_STEPS, Bar, bars, grown_bars
from .cases import Case, make_cases
from .options import add_options, parse
from .pipeline import ADAPTER, CHECKPOINT, MissingModel, Pipeline

SHEET_ROWS = 24
SHEETS = {table.GENERATE_ROW: "sheet.png", table.EDIT_ROW: "sheet_edit.png", table.REPLACE_ROW: "sheet_replace.png"}
COLUMNS = {
    "motion": "motion", "background": "backgr.", "pattern": "pattern", "all_three": "all three", "nearest": "nearest/8",
    "colour": "colour", "subject_rmse": "subj.RMSE", "flicker": "flicker", "kept_psnr": "kept dB", "ground_psnr": "ground dB",
    "clip_error": "clip dB", "inside_error": "subj. dB", "seconds": "s/clip",
}  # fmt: skip


def _cell(row: table.Row, name: str) -> str:
    if not getattr(row, name):
        return "-"
    mean, error = row.mean(name), row.error(name)
    if name in table.ACCURACIES:
        return f"{100 * mean:.0f}±{100 * error:.0f} %"
    if name in table.SQUARED_ERRORS:
        # decibels of the mean error, and how far they move with it
        mean, error = table.decibels(mean), 10 / math.log(10) * error / mean
    digits = {"subject_rmse": 3, "flicker": 4, "seconds": 2}.get(name, 1)
    return f"{mean:.{digits}f}±{error:.{digits}f}"


def format_table(rows: dict[str, table.Row]) -> str:
    """The table as text: one line a row, mean and standard error in every cell."""
    lines = [["", *COLUMNS.values()]] + [[name, *(_cell(row, column) for column in COLUMNS)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths)))
        for line in lines
    )


def describe(measured: dict, nearest: bool = True) -> str:
    """What was measured on a clip, in the words of the prompts."""
    motion = MOTIONS[measured["motion"]] if measured["motion"] >= 0 else "no subject found"
    text = f"{motion}, {COLOURS[measured['background_colour']]} {PATTERNS[measured['pattern']]}"
    if nearest:
        text += ", given subject" if measured["nearest"] == 0 else f", other subject ({measured['nearest']})"
    return text


def _sheet(cases: list[Case], rows: dict[str, table.Row], name: str) -> list[SheetRow]:
    row = rows[name]
    given = []
    for case, clip, found in zip(cases, row.clips, row.measured):
        kept, prompt = case.source_mask[0], case.prompt
        if name == table.EDIT_ROW:
            prompt = case.edit_prompt
        elif name == table.REPLACE_ROW:
            kept, prompt = 1 - case.replacement.edit_mask[0], case.replacement.prompt
        given.append(SheetRow(case.source[0] * kept[..., None], clip, f"asked: {prompt}\nfound: {describe(found)}"))
    return given


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mini", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_options(parser, 64, "a row", "output/mini", "results.json and the sheets")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=1.0)
    options = parse(parser)
    try:
        pipeline = Pipeline(options.models)
    except MissingModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cases = make_cases(options.clips, options.seed)
    settings = table.Settings(options.seed, options.steps, options.cfg, SHEET_ROWS)
    started = time.perf_counter()

    def progress(name: str, done: int) -> None:
        if sys.stderr.isatty() or done == len(cases):
            end = "\n" if done == len(cases) else "\r"
            spent = time.perf_counter() - started
            print(f"{name}: {done} of {len(cases)} clips, {spent:.0f} s so far   ", end=end, file=sys.stderr, flush=True)

    rows = table.run(pipeline, cases, settings, progress)
    print(f"\n{options.clips} clips, seed {options.seed}, {options.steps} steps, cfg {options.cfg:g}; ± is one standard error\n")
    print(format_table(rows), "\n")
    print(f"shuffled subject: {_first_other(rows[table.SHUFFLED]):.0f} % show the subject of the picture that was given instead")
    print(f"replace subject: {_first_other(rows[table.REPLACE_ROW]):.0f} % still show the subject that was to be replaced\n")
    decisive, grown = bars(rows), grown_bars(rows, _megabytes(options.models))
    print("\n".join(bar.as_text() for bar in decisive))
    print(f"\nbars of the grown model (meant for {GROWN_CLIPS} clips or more of {GROWN_STEPS} steps)")
    print("\n".join(bar.as_text() for bar in grown))
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options, rows, decisive, grown)
    for name, file in SHEETS.items():
        draw_sheet(_sheet(cases, rows, name), options.out / file)
    print(f"\nresults.json, {', '.join(SHEETS.values())} are in {options.out.resolve()}")
    return 0 if all(bar.holds for bar in decisive) else 1


def _megabytes(models: Path | None) -> float:
    """Both model files together, in millions of bytes."""
    folder = models or session.PACK_FOLDER / "models"
    return sum((folder / name).stat().st_size for name in (CHECKPOINT, ADAPTER)) / 1e6


def _first_other(row: table.Row) -> float:
    """Percentage of clips that show the first other subject: that of the shuffled row's picture, or of a replacement's source."""
    return 100 * sum(found["nearest"] == 1 for found in row.measured) / len(row.measured)


def _write(options: argparse.Namespace, rows: dict[str, table.Row], decisive: list[Bar], grown: list[Bar]) -> None:
    results = {
        "settings": {"clips": options.clips, "seed": options.seed, "steps": options.steps, "cfg": options.cfg},
        "rows": {name: {"summary": row.summary(), "clips": row.measured} for name, row in rows.items()},
        "bars": [bar.as_json() for bar in decisive],
        "grown_bars": [bar.as_json() for bar in grown],
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
