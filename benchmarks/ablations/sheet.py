"""What the variants make of the same cases, one under the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.mini.cases import Case
from benchmarks.sheet import SheetRow, draw_sheet

EVERY = 2
"""Frames from one shown to the next."""


def draw(cases: Sequence[Case], clips: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    """Writes the sheet: for each case its prompt and a row a variant, with the whole reference picture and every second frame.

    `clips`: of each variant, by mode (generated, then edited), uint8 `[at least as many as cases, F, 64, 64, 3]`.
    """
    rows = []
    for index, case in enumerate(cases):
        rows.append(SheetRow(None, [], case.prompt))
        for variant, made in clips.items():
            frames = [frame.float() / 255 for mode in made.values() for frame in mode[index, ::EVERY]]
            rows.append(SheetRow(case.source[0], frames, variant))
    draw_sheet(rows, file)
