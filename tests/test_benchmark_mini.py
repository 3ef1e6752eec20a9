"""The benchmark of the small model: held-out cases, the bars, and a tiny run of the whole command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.mini import rows as table
from benchmarks.mini.__main__ import bars, format_table
from benchmarks.mini.cases import make_cases
from benchmarks.mini.pipeline import MissingModel, check_models
from benchmarks.sheet import SheetRow, draw_sheet
from magdiff_core.data import procedural

ROOT = Path(__file__).resolve().parent.parent


def test_cases_are_held_out_and_change_the_background():
    for case in make_cases(24, 5):
        words = case.prompt.split()
        subject_colour, shape = procedural.COLOURS.index(words[1]), procedural.SHAPES.index(words[3])
        assert procedural.held_out_subject(torch.tensor(shape), torch.tensor(subject_colour))
        assert procedural.held_out_background(torch.tensor(case.background_colour), torch.tensor(case.pattern))
        assert procedural.COLOURS[case.background_colour] in words[4:] and procedural.PATTERNS[case.pattern] in words[4:]
        ground = 1 - case.source_mask[0, ..., None]
        assert ((case.source[0] - case.target[0]).abs() * ground).mean() > 0.01
        assert torch.equal(case.source_mask[0], case.target_mask[0])
        assert case.edit_motion != case.motion
        # The edit keeps the source's subject pixel for pixel.
        assert ((case.source - case.edit_target).abs() * case.kept[..., None]).max() < 1e-6
        assert len(case.candidates) == 8


def test_the_same_seed_draws_the_same_cases():
    one, same, other = make_cases(2, 3), make_cases(2, 3), make_cases(2, 4)
    assert one[1].prompt == same[1].prompt and torch.equal(one[1].target, same[1].target)
    assert not torch.equal(one[1].target, other[1].target)


def filled(**changes) -> dict[str, table.Row]:
    rows = {name: table.Row() for name in table.MAKERS}
    good = rows[table.GENERATE_ROW]
    good.motion, good.background, good.nearest = [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]
    rows[table.SHUFFLED].nearest = [1, 0, 0, 0]
    rows[table.AUTOENCODER].kept_psnr = [22.0, 24.0]
    rows[table.EDIT_ROW].kept_psnr = [17.0, 17.0]
    for name, values in changes.items():
        setattr(good, name, values)
    return rows


def test_bars_at_their_limits():
    assert [holds for *_, holds in bars(filled())] == [True] * 5
    assert [holds for *_, holds in bars(filled(motion=[1, 0, 0, 1]))] == [False, True, True, True, True]
    worse = filled()
    worse[table.EDIT_ROW].kept_psnr = [16.9, 16.9]
    worse[table.SHUFFLED].nearest = [1, 1, 0, 0]
    assert [holds for *_, holds in bars(worse)] == [True, True, True, False, False]


def test_standard_errors():
    row = table.Row(motion=[1, 1, 1, 0], flicker=[0.1, 0.3])
    assert row.error("motion") == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert row.error("flicker") == pytest.approx(0.1)
    assert "75±22 %" in format_table({"generate": row})


def test_a_missing_model_file_is_named(tmp_path):
    (tmp_path / "magdiff-mini.safetensors").touch()
    with pytest.raises(MissingModel, match=r"^magdiff-mini-adapter\.safetensors not found"):
        check_models(tmp_path)


def test_sheet_places_reference_and_frames(tmp_path):
    red, frames = torch.zeros(64, 64, 3), torch.zeros(8, 64, 64, 3)
    red[..., 0], frames[7, ..., 1] = 1, 1
    draw_sheet([SheetRow(red, frames, "a prompt")], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    colours = [sheet.getpixel((x, 60)) for x in range(sheet.width)]
    assert colours.index((255, 0, 0)) < colours.index((0, 0, 0)) < colours.index((0, 255, 0))


def test_the_command_runs_through_the_nodes(tmp_path):
    """All rows, one clip and two steps; that young weights miss a bar (exit status 1) is no error here."""
    command = [sys.executable, "-m", "benchmarks.mini", "--clips", "1", "--steps", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(results["rows"]) == list(table.MAKERS)
    generated = results["rows"][table.GENERATE_ROW]["summary"]
    assert all(math.isfinite(generated[name]["mean"]) for name in (*table.ACCURACIES, "subject_rmse", "flicker", "seconds"))
    edited, decoded = (results["rows"][name]["summary"]["kept_psnr"]["mean"] for name in (table.EDIT_ROW, table.AUTOENCODER))
    assert math.isfinite(edited) and math.isfinite(decoded)
    assert len(results["bars"]) == 5 and "motion class" in done.stdout
    assert (tmp_path / "sheet.png").is_file() and (tmp_path / "sheet_edit.png").is_file()
