"""The workflow with LoRA, ControlNet, context windows and our adapter on one model, in a real server, on random SD2.1 weights.

Changed against what is shipped, because this must run on two cores: 64 instead of 256 pixels, 6 frames in windows of 4 instead of
16 in windows of 8, and 2 steps instead of 50.
"""

from __future__ import annotations

import copy

import neighbour_files
import numpy as np
import pytest
import sd21_files
from comfy_server import server_with_models
from workflow_checks import as_prompt, check_clip, inputs_of, saved_clip

pytestmark = pytest.mark.server
FRAMES, SIZE = 6, 64
SMALLER = {
    "MagDiffHFAPyramidEncode": {"width": SIZE, "height": SIZE, "frames": FRAMES},
    "ImageScale": {"width": SIZE, "height": SIZE},
    "ContextWindowsManual": {"context_length": 4, "context_overlap": 2},
    "MagDiffSampler": {"steps": 2},
}


def write(models):
    sd21_files.make(models)
    neighbour_files.make(models)


@pytest.fixture(scope="module")
def server(comfy_session, tmp_path_factory):
    with server_with_models(tmp_path_factory.mktemp("neighbours-server") / "base", write, ["--fp32-text-enc"]) as running:
        yield running


def test_each_neighbour_acts_beside_the_adapter(server):
    prompt = as_prompt(server, "neighbours_sd21")
    for class_type, values in SMALLER.items():
        inputs = inputs_of(prompt, class_type)
        assert values.keys() <= inputs.keys()
        inputs.update(values)

    def clip(class_type=None, **changes):
        changed = copy.deepcopy(prompt)
        if class_type is not None:
            assert changes.keys() <= inputs_of(changed, class_type).keys()
            inputs_of(changed, class_type).update(changes)
        return saved_clip(server, changed, server.queue(changed))

    together = clip()
    check_clip(together, FRAMES, SIZE)
    for class_type, changes in (
        ("LoraLoader", {"strength_model": 0.0}),
        ("ControlNetApplyAdvanced", {"strength": 0.0}),
        ("ContextWindowsManual", {"context_length": FRAMES}),
        ("MagDiffApplyAdapter", {"temporal_strength": 0.0}),
    ):
        without = clip(class_type, **changes).astype(float)
        assert np.abs(without - together).mean() > 0.2, f"{class_type} {changes} changes nothing"
    log = server.log_text()
    assert "lora key not loaded" not in log and "missing controlnet keys" not in log
