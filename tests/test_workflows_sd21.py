"""The example workflows for Stable Diffusion 2.1, on random weights of its layout, over HTTP and in the page.

Changed against what is shipped, because this must run on two cores: 64 instead of 256 pixels, 2 frames instead of 8 and
2 steps instead of 50 (and the box in the clip, which is in pixels). Everything else is as a user gets it.
"""

from __future__ import annotations

import numpy as np
import pytest
import sd21_files
import workflow_checks
from workflow_checks import as_prompt, check_clip, compare_with_page, inputs_of, saved_clip

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
    from comfy_server import RunningServer

    base = tmp_path_factory.mktemp("sd21-server") / "base"
    files = sd21_files.make(base / "models")
    running = RunningServer(base, options=["--fp32-text-enc"])
    workflow_checks.upload_pictures(running)
    yield running
    running.stop()
    for file in files:
        file.unlink()


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
