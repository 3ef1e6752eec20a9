"""The example workflows for Stable Diffusion 2.1, on random weights of its layout, over HTTP and in the page.

Changed against what is shipped, because this must run on two cores: 64 instead of 256 pixels, 2 frames instead of 8 and
2 steps instead of 50 (and the box in the clip, which is in pixels). Everything else is as a user gets it.
"""

from __future__ import annotations

import numpy as np
import pytest
import sd21_files
import workflow_checks
from comfy_server import server_with_models
from workflow_checks import as_prompt, check_clip, compare_with_page, inputs_of, saved_clip

from dev.client import ExecutionFailed

pytestmark = pytest.mark.server
FRAMES, SIZE = 2, 64
SMALLER = {
    "generate_sd21": {
        "MagDiffHFAPyramidEncode": {"width": SIZE, "height": SIZE, "frames": FRAMES},
        "MagDiffSampler": {"steps": 2},
    },
    "edit_sd21": {
        "ImageFromBatch": {"length": FRAMES},
        "ImageScale": {"width": SIZE, "height": SIZE},
        "MagDiffSubjectSegment": {"box_x": 24, "box_y": 2, "box_width": 15, "box_height": 62},
        "MagDiffSampler": {"steps": 2},
    },
}


@pytest.fixture(scope="module")
def server(comfy_session, tmp_path_factory):
    """A server of its own that has the SD2.1 files; its encoders run in float32, which CPUs do three times faster."""
    with server_with_models(tmp_path_factory.mktemp("sd21-server") / "base", sd21_files.make, ["--fp32-text-enc"]) as running:
        yield running


def smaller_prompt(server, name):
    prompt = as_prompt(server, name)
    for class_type, values in SMALLER[name].items():
        inputs = inputs_of(prompt, class_type)
        assert values.keys() <= inputs.keys()
        inputs.update(values)
    return prompt


@pytest.mark.parametrize("name", workflow_checks.SD21)
def test_the_workflow_makes_a_clip_that_follows_the_seed(server, name):
    prompt = smaller_prompt(server, name)
    first = saved_clip(server, prompt, server.queue(prompt))
    check_clip(first, FRAMES, SIZE)
    inputs_of(prompt, "MagDiffSampler")["seed"] += 1
    second = saved_clip(server, prompt, server.queue(prompt))
    assert np.abs(first.astype(float) - second).mean() > 1


def test_a_part_that_a_checkpoint_lacks_is_an_error_only_where_it_is_used(server):
    """A checkpoint has no image encoder; its text encoder works, and whoever wants the other is told what to load."""
    load = {"class_type": "MagDiffLoadCheckpoint", "inputs": {"checkpoint": sd21_files.CHECKPOINT}}
    text = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a rocket"}}
    picture = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    vision = {"class_type": "CLIPVisionEncode", "inputs": {"clip_vision": ["load", 3], "image": ["picture", 0], "crop": "none"}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["text", 0]}}
    entry = server.queue({"load": load, "text": text, "shown": shown})
    assert entry["status"]["status_str"] == "success"
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["vision", 0]}}
    with pytest.raises(ExecutionFailed) as failed:
        server.queue({"load": load, "picture": picture, "vision": vision, "shown": shown})
    message = failed.value.exception_message
    assert f"{sd21_files.CHECKPOINT} holds no clip_vision: use Load CLIP Vision" in message


@pytest.mark.browser
@pytest.mark.parametrize("name", workflow_checks.SD21)
def test_the_workflow_runs_in_the_page(server, page, name, tmp_path):
    from browser import driver

    driver.drop_workflow(page, workflow_checks.WORKFLOWS / f"{name}.json")
    ours = as_prompt(server, name)
    compare_with_page(ours, page.evaluate("async () => (await app.graphToPrompt()).output"), server.object_info())
    for class_type, values in SMALLER[name].items():
        for widget, value in values.items():
            driver.set_widget(page, class_type, widget, value)
    driver.set_widget(page, "MagDiffSampler", "seed", 5)
    entry = server.history(driver.press_run(page))
    page.screenshot(path=str(tmp_path / f"{name}.png"))
    check_clip(saved_clip(server, ours, entry), FRAMES, SIZE)
