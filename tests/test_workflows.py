"""The example workflows for the small model, as they are shipped, in a real ComfyUI server."""

from __future__ import annotations

import numpy as np
import pytest
import workflow_checks
from PIL import Image
from workflow_checks import as_prompt, check_clip, inputs_of, saved_clip

pytestmark = pytest.mark.server
FRAMES, SIZE = 8, 64


@pytest.mark.parametrize("name", workflow_checks.SMALL)
def test_the_workflow_makes_a_clip_that_follows_the_seed(server, name):
    prompt = as_prompt(server, name)
    first = saved_clip(server, prompt, server.queue(prompt))
    check_clip(first, FRAMES, SIZE)
    inputs_of(prompt, "MagDiffSampler")["seed"] += 1
    second = saved_clip(server, prompt, server.queue(prompt))
    check_clip(second, FRAMES, SIZE)
    assert np.abs(first.astype(float) - second).mean() > 1


def test_the_generated_clip_follows_the_picture(server):
    """The same subject in other colours gives another clip."""
    prompt = as_prompt(server, "generate_small")
    inputs_of(prompt, "MagDiffSampler")["steps"] = 8
    first = saved_clip(server, prompt, server.queue(prompt))
    picture = workflow_checks.WORKFLOWS / "input" / inputs_of(prompt, "LoadImage")["image"]
    turned = np.roll(np.asarray(Image.open(picture).convert("RGB")), 1, axis=2)
    file = server.base / "turned colours.png"
    Image.fromarray(turned).save(file)
    inputs_of(prompt, "LoadImage")["image"] = server.upload_image(file)
    second = saved_clip(server, prompt, server.queue(prompt))
    assert np.abs(first.astype(float) - second).mean() > 1


def test_the_edit_keeps_the_subject_pixel_for_pixel(server):
    prompt = as_prompt(server, "edit_small")
    keep = inputs_of(prompt, "MagDiffKeepRegion")
    masks = {"class_type": "MaskToImage", "inputs": {"mask": keep["keep_mask"]}}
    shown = {"source": keep["source_frames"], "mask": ["subject mask", 0]}
    shown = {key: {"class_type": "PreviewImage", "inputs": {"images": value}} for key, value in shown.items()}
    entry = server.queue({**prompt, **shown, "subject mask": masks})
    edited = saved_clip(server, prompt, entry).astype(float)
    source, subject = (
        np.stack([workflow_checks.decode(server.view(file))[0] for file in server.files(entry) if file["node"] == key])
        for key in shown
    )
    subject = subject[..., 0] == 255
    # the cross covers 9 % of the picture
    assert 0.06 < subject.mean((1, 2)).min() and subject.mean((1, 2)).max() < 0.12
    difference = np.abs(edited - source).max(-1)
    assert difference[subject].max() <= 1
    assert (difference[~subject] > 8).mean() > 0.5, "the ground around the subject did not change"
    text = [output["text"] for output in entry["outputs"].values() if "text" in output]
    assert len(text) == 1 and "PSNR" in text[0][0]


def test_a_slider_encodes_nothing_again(server):
    """The order of the nodes: after alpha_image moved, only what depends on it runs."""
    prompt = as_prompt(server, "generate_small")
    inputs_of(prompt, "MagDiffSampler")["steps"] = 2
    server.queue(prompt)
    inputs_of(prompt, "MagDiffAPAConditioning")["alpha_image"] = 1.23
    ran = []
    server.queue(prompt, lambda kind, data: ran.append(data.get("node")) if kind == "executing" else None)
    kinds = {prompt[node]["class_type"] for node in ran if node}
    assert "MagDiffAPAConditioning" in kinds
    assert kinds == {"MagDiffAPAConditioning", "MagDiffSampler", "VAEDecode", "SaveAnimatedWEBP", "PreviewImage"}


def test_comfyui_offers_the_workflows_as_templates(server):
    """The page's template browser lists them under this pack's name, with their pictures."""
    offered = server.get("/workflow_templates")
    names = set(workflow_checks.ALL)
    pack = next(pack for pack, listed in offered.items() if names <= set(listed))
    for name in names:
        file = f"/api/workflow_templates/{pack}/{name}"
        assert server.get(f"{file}.json") == workflow_checks.read(name)
        assert server._request(f"{file}.jpg") == (workflow_checks.WORKFLOWS / f"{name}.jpg").read_bytes()
