"""The node Train MagDiff Adapter: it writes an adapter that can be applied, and goes on after Cancel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_parts import FRAMES, SIZE, small_checkpoint, write_clips

from magdiff_core.train.checkpoint import load_state
from magdiff_core.train.loss_curve import draw_losses, read_losses


@pytest.fixture(scope="module")
def node(pack):
    return pack["MagDiffTrainAdapter"]


@pytest.fixture
def widgets(node, tmp_path):
    given = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if getattr(entry, "default", None) is not None}
    clips = str(write_clips(tmp_path / "clips"))
    return {**given, "clips": clips, "file_name": f"{tmp_path.name}.safetensors", "steps": 3, "batch": 2, "learning_rate": 1e-3,
            "frames": FRAMES, "size": SIZE, "precision": "no", "checkpoint_layers": False}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_samples(pack, monkeypatch):
    import sys

    for name, module in list(sys.modules.items()):
        if name.endswith("train.adapter_run"):
            monkeypatch.setattr(module, "sample_sheet", lambda *_: torch.full((2, 2, 3), 0.5))


def execute(node, widgets):
    loaded = small_checkpoint()
    # as ComfyUI calls it
    with torch.inference_mode():
        return node.execute(loaded.model, loaded.clip, loaded.vae, **widgets, clip_vision=loaded.clip_vision)


def folder_of(widgets):
    import folder_paths

    return Path(folder_paths.get_output_directory(), "magdiff_training", Path(widgets["file_name"]).stem)


def test_what_it_writes_can_be_applied(node, pack, widgets):
    result = execute(node, widgets)
    name, curve, samples, text = result.args
    assert name == widgets["file_name"] and curve.shape == (1, 320, 768, 3) and samples.shape == (1, 2, 2, 3)
    assert "3 steps of 2 clips" in text and str(folder_of(widgets)) in text
    applied = pack["MagDiffApplyAdapter"].execute(small_checkpoint().model, name, 1.0, 1.0, 1.0, 1.0).args[0]
    assert applied.get_additional_models_with_key("magdiff")
    # more steps go on from there
    assert "5 steps" in execute(node, {**widgets, "steps": 5}).args[3]
    assert load_state(folder_of(widgets) / "state.pt")["step"] == 5


def test_cancel_keeps_a_state_that_ends_in_the_same_bits(node, widgets, monkeypatch):
    import comfy.model_management as management

    execute(node, widgets)
    whole = load_state(folder_of(widgets) / "state.pt")
    other = {**widgets, "file_name": "other-" + widgets["file_name"]}
    calls = [0]
    usual = torch.nn.functional.mse_loss

    def press_cancel(*inputs):
        calls[0] += 1
        if calls[0] == 2:
            management.interrupt_current_processing()
        return usual(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "mse_loss", press_cancel)
        with pytest.raises(management.InterruptProcessingException):
            execute(node, other)
    assert 0 < load_state(folder_of(other) / "state.pt")["step"] < 3
    execute(node, other)
    parts = load_state(folder_of(other) / "state.pt")
    for key, value in whole["parameters"].items():
        assert torch.equal(value, parts["parameters"][key]), key


def test_it_says_what_is_wrong(node, widgets, tmp_path):
    import folder_paths

    with pytest.raises(ValueError, match="clips is empty"):
        execute(node, {**widgets, "clips": " "})
    with pytest.raises(ValueError, match='file_name is "../a.safetensors"'):
        execute(node, {**widgets, "file_name": "../a.safetensors"})
    other = Path(folder_paths.get_folder_paths("magdiff")[0], f"taken-{tmp_path.name}.safetensors")
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="exists and no training"):
        execute(node, {**widgets, "file_name": other.name})
    execute(node, {**widgets, "steps": 1})
    with pytest.raises(ValueError, match="a training with another stage"):
        execute(node, {**widgets, "stage": "text-to-video"})


def test_changed_clips_run_the_node_again(node, widgets):
    before = node.fingerprint_inputs(**widgets)
    assert before == node.fingerprint_inputs(**widgets)
    Path(widgets["clips"], "0.txt").write_text("something else")
    assert before != node.fingerprint_inputs(**widgets)


def test_the_curve_shows_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n{"step": 3')
    assert read_losses(log) == [(10, 2.0), (20, 0.5)]
    assert read_losses(tmp_path / "gone") == []
    picture = draw_losses(read_losses(log))[0]
    blue = (picture[..., 2] - picture[..., 0] > 0.4).nonzero()
    assert blue[:, 0].max() > 240 and blue[:, 0].min() < 80, "from the top to the bottom"
    assert blue[blue[:, 0].argmax(), 1] > 700 and draw_losses([]).shape == picture[None].shape
