"""What `python dev.py demo` shows: its reading of prompts, its messages, and a whole run against a real server."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from benchmarks import demo
from benchmarks.photos import PHOTOS, segment_prompt
from magdiff_core.data import procedural


def test_expected_reads_the_prompts_of_the_small_model():
    asked = demo.expected("a cyan checkered star moves right over a orange dotted background")
    assert [procedural.MOTIONS[asked[0]], procedural.COLOURS[asked[1]], procedural.PATTERNS[asked[2]]] == [
        "moves right", "orange", "dotted",
    ]  # fmt: skip
    assert demo.expected("the red plain heart shrinks on a black barred floor")[1] == procedural.COLOURS.index("black")
    assert demo.expected("a cat runs over a meadow") is None


def info(checkpoints: list[str], adapters: list[str]) -> dict:
    return {
        "MagDiffLoadCheckpoint": {"input": {"required": {"checkpoint": ["COMBO", {"options": checkpoints}]}}},
        "MagDiffApplyAdapter": {"input": {"required": {"adapter": [adapters]}}},
    }


def test_missing_models_are_named():
    demo.check_models(info(["magdiff-mini.safetensors"], ["magdiff-mini-adapter.safetensors"]))
    with pytest.raises(demo.DemoError, match=r"^magdiff-mini\.safetensors missing"):
        demo.check_models(info([], ["magdiff-mini-adapter.safetensors"]))
    with pytest.raises(demo.DemoError, match="MagDiffLoadCheckpoint: this pack is not loaded"):
        demo.check_models({})


def test_a_workflow_without_the_nodes_that_are_measured_is_refused():
    with pytest.raises(demo.DemoError, match="has 0 nodes MagDiffSubjectSegment"):
        demo.add_probes({"1": {"class_type": "VAEDecode", "inputs": {}}})


def test_points_of_the_photographs_lie_in_them():
    for photo in PHOTOS:
        prompt = segment_prompt(photo, "a.png", {"method": "GrabCut"})
        inputs = prompt["segment"]["inputs"]
        assert inputs["method"] == "GrabCut" and inputs["images"] == ["picture", 0]
        x, y, width, height = photo.box
        for point in json.loads(inputs["positive_points"]):
            assert x <= point["x"] < x + width and y <= point["y"] < y + height


@pytest.mark.server
def test_the_whole_demo(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--server", server.url, "--out", str(tmp_path)])
    assert demo.main() == 0
    shown = capsys.readouterr().out
    for words in ("generate_small", "edit_small", "motion", "background", "nearest of 8", "dB before pasting"):
        assert words in shown
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["edit_small"]["kept_psnr"] > 0 and results["generate_small"]["motion"] in range(-1, 7)
    for name in demo.EXAMPLES:
        with Image.open(tmp_path / f"{name}.webp") as clip:
            assert clip.n_frames == 8
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000 and len(set(sheet.resize((64, 64)).getdata())) > 100


def test_no_server_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--server", "http://127.0.0.1:9", "--out", str(tmp_path)])
    assert demo.main() == 1
    assert "no ComfyUI answers at http://127.0.0.1:9" in capsys.readouterr().out


def test_ctrl_c_shows_no_traceback(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.ComfyClient, "object_info", interrupted)
    monkeypatch.setattr(sys, "argv", ["demo", "--server", "http://127.0.0.1:9", "--out", str(tmp_path)])
    assert demo.main() == 130
