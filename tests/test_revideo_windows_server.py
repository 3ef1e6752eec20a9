"""ReVideo Long Video in a real server: cancelled in its second window, gone on with after everything was unloaded."""

from __future__ import annotations

import json

import pytest
from test_revideo_server import DRAWING, SIDE, F, pictures, prompt, source  # noqa: F401

pytestmark = pytest.mark.server

FRAMES = 3 * F - 2
STEPS = 2


@pytest.fixture
def long_prompt(prompt) -> dict:  # noqa: F811
    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        **{name: prompt[name] for name in ("load", "frame")},
        "clip": node("RepeatImageBatch", image=["frame", 0], amount=FRAMES),
        "draw": node(
            "MagDiffDrawTrajectories", trajectories=json.dumps({**DRAWING, "frames": FRAMES}), source_frames=["clip", 0]
        ),
        "long": node(
            "MagDiffReVideoLongVideo",
            model=["load", 0],
            clip_vision=["load", 1],
            vae=["load", 2],
            control=["load", 3],
            edited_frame=["frame", 0],
            source_frames=["clip", 0],
            edit_mask=["draw", 1],
            tracks=["draw", 0],
            resolution="custom",
            width=SIDE,
            height=SIDE,
            window_frames=F,
            overlap=1,
            overlap_mode="hold",
            colour_match="source",
            seed=1,
            steps=STEPS,
            cfg=4.0,
            min_cfg=1.0,
            sampler_name="euler",
            scheduler="karras",
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            fusion="safm",
            motion_maps="default",
            fps=10,
            motion_bucket_id=127,
            augmentation_level=0.02,
        ),
        "seen": node("PreviewImage", images=["long", 0]),
        "said": node("PreviewAny", source=["long", 2]),
    }


def test_it_goes_on_after_cancel_with_models_loaded_anew(server, long_prompt):
    from dev.client import ExecutionFailed

    kept = server.base / "temp" / "magdiff_long_video"
    totals = set()

    def cancel(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "long":
            totals.add(data["max"])
            if data["value"] > STEPS:
                server.interrupt()

    with pytest.raises(ExecutionFailed, match="interrupted"):
        server.queue(long_prompt, cancel)
    assert totals == {3 * STEPS}, "one bar over all windows"
    count = len(list(kept.glob("*.safetensors")))
    assert count in (1, 2) and len(list(kept.iterdir())) == count
    server.free()
    values = []

    def watch(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "long":
            values.append(data["value"])

    outputs = server.queue(long_prompt, watch)["outputs"]
    assert outputs["said"]["text"][0].count("kept from before the interrupt") == count
    assert min(value for value in values if value) >= STEPS and max(values) == 3 * STEPS
    assert not list(kept.iterdir()), "nothing is left of a complete clip"
    clip = pictures(server, outputs["seen"]["images"])
    assert clip.shape == (FRAMES, SIDE, SIDE, 3)
    server.free()
    outputs = server.queue(long_prompt)["outputs"]
    assert "kept" not in outputs["said"]["text"][0]
    assert (pictures(server, outputs["seen"]["images"]) == clip).all(), "as an unbroken run"


def test_bad_input_stops_the_prompt_with_its_reason(server, long_prompt):
    shorter = {"class_type": "RepeatImageBatch", "inputs": {"image": ["frame", 0], "amount": FRAMES - 1}}
    draw = {"class_type": "MagDiffDrawTrajectories", "inputs": {**long_prompt["draw"]["inputs"], "source_frames": ["shorter", 0]}}
    with pytest.raises(Exception, match=f"edit_mask has {FRAMES - 1} frames, the images have {FRAMES}: give one mask or {FRAMES}"):
        server.queue({**long_prompt, "shorter": shorter, "draw": draw})
