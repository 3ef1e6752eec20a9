"""The Wan workflow in a real ComfyUI server, on random weights of its layout.

Changed against what is shipped, because this must run on two cores: 64 instead of 480 pixels, 5 frames instead of 33, 3 steps, and
the stand-in for the text encoder.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import wan_files
from comfy_server import server_with_models
from workflow_checks import as_prompt, inputs_of, read, saved_clip

pytestmark = pytest.mark.server
NAME = "apa_wan"
FRAMES, SIZE = 5, 64
SMALLER = {
    "CLIPLoader": wan_files.STAND_IN,
    "WanImageToVideo": {"width": SIZE, "height": SIZE, "length": FRAMES},
    "KSampler": {"steps": 3},
}


@pytest.fixture(scope="module")
def server(comfy_session, tmp_path_factory):
    with server_with_models(tmp_path_factory.mktemp("wan-server") / "base", wan_files.make, ["--fp32-text-enc"]) as running:
        yield running


def test_the_workflow_makes_clips_that_follow_the_sliders(server):
    prompt = as_prompt(server, NAME)
    for class_type, values in SMALLER.items():
        inputs = inputs_of(prompt, class_type)
        assert values.keys() <= inputs.keys()
        inputs.update(values)

    def clip(**alphas):
        changed = copy.deepcopy(prompt)
        inputs_of(changed, "MagDiffAPAForWan").update(alphas)
        return saved_clip(server, changed, server.queue(changed)).astype(float)

    shipped = clip()
    assert shipped.shape == (FRAMES, SIZE, SIZE, 3) and shipped.std() > 3
    plain = clip(alpha_text=1.0, alpha_image=1.0)
    without = copy.deepcopy(prompt)
    inputs_of(without, "KSampler")["model"] = inputs_of(without, "MagDiffAPAForWan")["model"]
    kept = {key: node for key, node in without.items() if node["class_type"] != "MagDiffAPAForWan"}
    assert np.array_equal(plain, saved_clip(server, kept, server.queue(kept)).astype(float))
    assert np.abs(clip(alpha_text=1.0, alpha_image=0.0) - plain).mean() > 0.2
    assert np.abs(clip(alpha_text=0.0, alpha_image=1.0) - plain).mean() > 0.2
    assert "does nothing" not in server.log_text()


def test_without_the_picture_s_tokens_the_log_says_so(server):
    prompt = as_prompt(server, NAME)
    for class_type, values in SMALLER.items():
        inputs_of(prompt, class_type).update(values)
    del inputs_of(prompt, "WanImageToVideo")["clip_vision_output"]
    saved_clip(server, prompt, server.queue(prompt))
    assert "APA for Wan does nothing for the positive and negative conditioning" in server.log_text()


def test_the_workflow_tells_where_its_files_come_from():
    hinted = {
        hint["directory"]: (hint, node["widgets_values"][0])
        for node in read(NAME)["nodes"]
        for hint in node["properties"].get("models", ())
    }
    assert hinted.keys() == {"diffusion_models", "text_encoders", "vae", "clip_vision"}
    for hint, chosen in hinted.values():
        assert hint["name"] == chosen and hint["url"].startswith("https://huggingface.co/") and hint["url"].endswith(f"/{chosen}")
