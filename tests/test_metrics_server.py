"""Evaluate Clips in a real server: lists of clips, the picture on the node, and its words."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.server

CHOICES = {
    "clip_model": "none",
    "dino_model": "none",
    "i3d_model": "none",
    "c3d_model": "none",
    "allow_torchscript": False,
    "prompt": "",
}


def grey(value: int) -> dict:
    return {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 4, "color": value * 0x010101}}


def test_two_clips_are_measured_together(server):
    prompt = {
        "one": grey(100),
        "other": grey(126),
        "both": {"class_type": "ImageBatch", "inputs": {"image1": ["one", 0], "image2": ["other", 0]}},
        "clips": {"class_type": "RebatchImages", "inputs": {"images": ["both", 0], "batch_size": 4}},
        "measure": {
            "class_type": "MagDiffEvaluateClips",
            "inputs": {**CHOICES, "frames": ["clips", 0], "source_frames": ["one", 0]},
        },
        "numbers": {"class_type": "PreviewAny", "inputs": {"source": ["measure", 2]}},
    }
    outputs = server.queue(prompt)["outputs"]
    assert len(outputs["measure"]["images"]) == 1
    assert outputs["measure"]["text"][0].startswith("2 clips of 4 frames, 32x24")
    values = [clip["value"] for clip in json.loads(outputs["numbers"]["text"][0])["metrics"]["psnr"]["clips"]]
    # equal, and off by 26 of 255
    assert values == pytest.approx([100.0, 19.83], abs=0.01)


def test_nothing_to_measure_stops_the_node_with_the_way_out(server):
    prompt = {"one": grey(100), "measure": {"class_type": "MagDiffEvaluateClips", "inputs": {**CHOICES, "frames": ["one", 0]}}}
    with pytest.raises(Exception, match="nothing to measure: wire source_frames"):
        server.queue(prompt)
