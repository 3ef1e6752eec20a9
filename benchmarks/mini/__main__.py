"""How good the small model is, measured through the shipped nodes and ComfyUI's sampler.

Run: python dev.py run -m benchmarks.mini --clips 64 --seed 1 [--steps 25] [--cfg 2] [--models DIR] [--out DIR] [--threads T]

Held-out (shape, colour) and (background, pattern) pairs; the prompt's background and motion differ from the picture's. Rows:
true pixels and the autoencoder alone are the ceiling; "shuffled subject" gets another subject's picture under the same
prompt, still measured against its own subject; "edit" keeps a clip's subject and changes the background. Writes results.json
and sheet.png. Exit status: 0 when every bar holds, 1 when one does not, 2 when a model file is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.sheet import SheetRow, draw_sheet
from magdiff_core.data.procedural import COLOURS, MOTIONS, PATTERNS

from . import rows as table
from .cases import Case, make_cases
from .pipeline import MissingModel, Pipeline

SHEET_ROWS = 24
KEPT_LOSS = 6.0
"""Decibels that the kept region of an edit may lose against the autoencoder alone."""
COLUMNS = {
    "motion": "motion", "background": "backgr.", "pattern": "pattern", "nearest": "nearest/8",
    "subject_rmse": "subj.RMSE", "flicker": "flicker", "kept_psnr": "kept dB", "seconds": "s/clip",
}  # fmt: skip


def bars(rows: dict[str, table.Row]) -> list[tuple[str, float, str, float, bool]]:
    """What the small model must reach: (name, value, "at least" or "at most", limit, holds)."""
    generated, edited = rows[table.GENERATE_ROW], rows[table.EDIT_ROW]
    loss = rows[table.AUTOENCODER].mean("kept_psnr") - edited.mean("kept_psnr")
    wanted = [
        ("motion class", generated.mean("motion"), "at least", 0.55),
        ("background colour", generated.mean("background"), "at least", 0.80),
        ("nearest of 8 subjects", generated.mean("nearest"), "at least", 0.45),
        ("nearest of 8, shuffled subject", rows[table.SHUFFLED].mean("nearest"), "at most", 0.25),
        ("dB lost in the kept region", loss, "at most", KEPT_LOSS),
    ]
    return [(*bar, bar[1] >= bar[3] if bar[2] == "at least" else bar[1] <= bar[3]) for bar in wanted]


def _cell(row: table.Row, name: str) -> str:
    if not getattr(row, name):
        return "-"
    mean, error = row.mean(name), row.error(name)
    if name in table.ACCURACIES:
        return f"{100 * mean:.0f}±{100 * error:.0f} %"
    digits = {"subject_rmse": 3, "flicker": 4, "kept_psnr": 1, "seconds": 2}[name]
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
    reference = [case.source[0] * case.source_mask[0, ..., None] for case in cases]
    prompts = [case.edit_prompt if name == table.EDIT_ROW else case.prompt for case in cases]
    return [
        SheetRow(reference[i], clip, f"asked: {prompts[i]}\nfound: {describe(row.measured[i])}")
        for i, clip in enumerate(row.clips)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mini", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=64, help="clips a row (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="draws the clips and their noise (default 0)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("output/mini"), help="folder for results.json and the sheets")
    parser.add_argument("--models", type=Path, help="folder with another pair of the two files, for one just trained")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; its own default otherwise")
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}: at least 1 is needed")
    if options.threads:
        torch.set_num_threads(options.threads)
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
    # The first of the others is the one whose picture this row gets.
    followed = [measured["nearest"] == 1 for measured in rows[table.SHUFFLED].measured]
    print(f"shuffled subject: {100 * sum(followed) / len(followed):.0f} % show the subject of the picture that was given instead\n")
    verdicts = bars(rows)
    for name, value, sense, limit, holds in verdicts:
        shown = [f"{number:.1f} dB" if "dB" in name else f"{100 * number:.0f} %" for number in (value, limit)]
        print(f"{'holds' if holds else 'FAILS':6} {name}: {shown[0]}, {sense} {shown[1]}")
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options, rows, verdicts)
    for name, file in ((table.GENERATE_ROW, "sheet.png"), (table.EDIT_ROW, "sheet_edit.png")):
        draw_sheet(_sheet(cases, rows, name), options.out / file)
    print(f"\nresults.json, sheet.png and sheet_edit.png are in {options.out.resolve()}")
    return 0 if all(holds for *_, holds in verdicts) else 1


def _write(options: argparse.Namespace, rows: dict[str, table.Row], verdicts: list[tuple]) -> None:
    results = {
        "settings": {"clips": options.clips, "seed": options.seed, "steps": options.steps, "cfg": options.cfg},
        "rows": {name: {"summary": row.summary(), "clips": row.measured} for name, row in rows.items()},
        "bars": [
            {"name": name, "value": value, "sense": sense, "limit": limit, "holds": holds}
            for name, value, sense, limit, holds in verdicts
        ],
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
