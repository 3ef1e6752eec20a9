"""Train MagDiff Adapter in a real server: progress, Cancel, going on, and the adapter wired into the next node."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from training_parts import FRAMES, SIZE, write_clips

from dev.client import ExecutionFailed
from magdiff_core.train.checkpoint import load_state

pytestmark = pytest.mark.server


def prompt(clips: Path, steps: int) -> dict:
    training = {
        "model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "clip_vision": ["checkpoint", 3],
        "clips": str(clips), "stage": "magdiff", "file_name": "from-the-server.safetensors", "steps": steps, "batch": 1,
        "accumulate": 1, "learning_rate": 1e-4, "frames": FRAMES, "size": SIZE, "frame_rate": 8.0, "windows": 1,
        "precision": "auto", "checkpoint_layers": True, "sample_steps": 1000, "save_steps": 1000, "half": True, "seed": 0,
    }  # fmt: skip
    applied = {"model": ["checkpoint", 0], "adapter": ["train", 0], "temporal_strength": 1.0, "image_strength": 1.0,
               "pyramid_strength": 1.0, "base_strength": 1.0}  # fmt: skip
    subject = {"model": ["apply", 0], "clip_vision": ["checkpoint", 3], "subject": ["train", 2]}
    nodes = {
        "checkpoint": ("MagDiffLoadCheckpoint", {"checkpoint": "magdiff-mini.safetensors"}),
        "train": ("MagDiffTrainAdapter", training),
        "apply": ("MagDiffApplyAdapter", applied),
        "tokens": ("MagDiffEncodeSubjectTokens", subject),
        "curve": ("PreviewImage", {"images": ["train", 1]}),
        "shown": ("PreviewAny", {"source": ["tokens", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_cancel_and_going_on(server, tmp_path):
    clips = write_clips(tmp_path / "clips")
    state = server.base / "output" / "magdiff_training" / "from-the-server" / "state.pt"
    seen, cancelled = [], []

    def cancel_in_the_middle(kind, data):
        if kind == "progress" and data["max"] == 40:
            seen.append(data["value"])
            if data["value"] >= 2 and not cancelled:
                cancelled.append(data["value"])
                server.interrupt()

    with pytest.raises(ExecutionFailed, match="interrupted"):
        server.queue(prompt(clips, 40), cancel_in_the_middle)
    stopped_at = load_state(state)["step"]
    assert cancelled[0] <= stopped_at < 40 and seen == sorted(seen)

    entry = server.queue(prompt(clips, stopped_at + 1))
    assert load_state(state)["step"] == stopped_at + 1
    assert entry["outputs"]["train"]["images"] and "from-the-server.safetensors" in entry["outputs"]["train"]["text"][0]
    with safe_open(server.base / "models" / "magdiff" / "from-the-server.safetensors", "pt") as file:
        assert any(key.startswith("base.") for key in file.keys())
