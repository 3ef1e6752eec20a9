"""The example workflows for ReVideo, on small random weights of the published layout, over HTTP and in the page.

Changed against what is shipped, because this must run on two cores: the checkpoint, windows of 3 frames instead of 14, 128 x 64
pixels instead of a megapixel, 2 steps instead of 25. The clip, its drawings and all other settings are as a user gets them.
"""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest
import revideo_files
import workflow_checks
from comfy_server import server_with_models
from PIL import Image, ImageDraw
from workflow_checks import as_prompt, compare_with_page, inputs_of, saved_clip

pytestmark = pytest.mark.server
WINDOW = revideo_files.CLIP_FRAMES
FRAMES = {name: WINDOW for name in workflow_checks.REVIDEO} | {"revideo_long": 2 * WINDOW - 1}
HEIGHT, WIDTH = 384, 672
SMALL_FILE = "small.safetensors"
SMALLER = {
    "MagDiffLoadReVideo": {"checkpoint": SMALL_FILE},
    "MagDiffReVideoImageConditioning": {"resolution": "custom", "width": 128, "height": 64, "frames": WINDOW},
    "KSampler": {"steps": 2},
    "MagDiffReVideoLongVideo": {"resolution": "custom", "width": 128, "height": 64, "window_frames": WINDOW, "steps": 2},
}
LEAST_PSNR = 32.85
"""What the paper reports for its own method outside of the region (table 1); here, after pasting, it must be exceeded."""


def write(models):
    """The small file, and an empty one under the name that the workflows ask for."""
    folder = models / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "model.ckpt").touch()
    weights = {**revideo_files.weights(), **revideo_files.image_encoder(), **revideo_files.autoencoder()}
    revideo_files.save(folder / SMALL_FILE, weights)


@pytest.fixture(scope="module")
def server(comfy_session, tmp_path_factory):
    with server_with_models(tmp_path_factory.mktemp("revideo-server") / "base", write) as running:
        yield running


def smaller_prompt(server, name):
    prompt = as_prompt(server, name)
    for node in prompt.values():
        values = SMALLER.get(node["class_type"], {})
        assert values.keys() <= node["inputs"].keys()
        node["inputs"].update(values)
        if node["class_type"] == "ImageFromBatch" and node["inputs"]["length"] > 1:
            node["inputs"]["length"] = FRAMES[name]
    return prompt


def with_mask_inverted(prompt):
    """The same prompt with everything behind the edit mask getting its opposite."""
    turned = copy.deepcopy(prompt)
    draw = node_id(turned, "MagDiffDrawTrajectories")
    for node in turned.values():
        for name, value in node["inputs"].items():
            if value == [draw, 1]:
                node["inputs"][name] = ["inverted", 0]
    return {**turned, "inverted": {"class_type": "InvertMask", "inputs": {"mask": [draw, 1]}}}


def node_id(prompt, class_type):
    (found,) = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return found


def drawn_region(name) -> np.ndarray:
    """Pixels `[H, W]` inside of the regions that the workflow draws, by Pillow."""
    (node,) = [node for node in workflow_checks.read(name)["nodes"] if node["type"] == "MagDiffDrawTrajectories"]
    picture = Image.new("1", (WIDTH, HEIGHT))
    for region in json.loads(node["widgets_values"][0])["regions"]:
        points = [(point["u"] * WIDTH, point["v"] * HEIGHT) for point in region["points"]]
        pen = ImageDraw.Draw(picture)
        (pen.polygon if region["shape"] == "polygon" else pen.rectangle)(points, fill=1)
    return np.asarray(picture)


def outside_of(name) -> np.ndarray:
    """Pixels `[H, W]` that are outside of the regions for sure: a pixel of the border may count to either side."""
    inside = drawn_region(name)
    near = np.zeros_like(inside)
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            near |= np.roll(inside, (rows, columns), (0, 1))
    return ~near


def pictures(server, entry, node) -> np.ndarray:
    return np.concatenate([workflow_checks.decode(server.view(file)) for file in server.files(entry) if file["node"] == node])


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    error = np.mean((one[:, where].astype(float) - other[:, where]) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def run(server, name, prompt):
    """(result, source, history entry) of a run; frames `[F, H, W, 3]`."""
    source = inputs_of(prompt, "MagDiffKeepRegion")["source_frames"]
    probe = {"source": {"class_type": "PreviewImage", "inputs": {"images": source}}}
    (shown,) = [key for key, node in prompt.items() if node.get("_meta", {}).get("title") == "All frames"]
    entry = server.queue({**prompt, **probe})
    result, source = pictures(server, entry, shown), pictures(server, entry, "source")
    assert result.shape == source.shape == (FRAMES[name], HEIGHT, WIDTH, 3)
    return result, source, entry


def shown_psnr(entry) -> float:
    """The PSNR that the workflow shows: of the kept region before pasting."""
    texts = [text for output in entry["outputs"].values() for text in output.get("text", ())]
    (found,) = [match for match in (re.search(r"PSNR before pasting ([\d.]+) dB", text) for text in texts) if match]
    return float(found[1])


@pytest.mark.parametrize("name", workflow_checks.REVIDEO)
def test_it_runs_and_the_rest_is_kept_but_not_with_the_mask_inverted(server, name):
    prompt = smaller_prompt(server, name)
    outside, inside = outside_of(name), drawn_region(name)
    result, source, entry = run(server, name, prompt)
    assert psnr(result, source, outside) == math.inf, "kept pixel for pixel"
    assert psnr(result, source, inside) < LEAST_PSNR, "nothing was edited"
    clip = saved_clip(server, prompt, entry)
    assert clip.shape == result.shape
    assert math.isfinite(shown_psnr(entry))
    result, source, _ = run(server, name, with_mask_inverted(prompt))
    assert psnr(result, source, outside) < LEAST_PSNR


@pytest.mark.parametrize("name", workflow_checks.REVIDEO)
def test_the_psnr_that_it_shows_tells_right_from_inverted(server, name):
    """In place of the model stands an edit that changes the drawn region and nothing else."""
    prompt = smaller_prompt(server, name)
    keep = inputs_of(prompt, "MagDiffKeepRegion")
    mask = [node_id(prompt, "MagDiffDrawTrajectories"), 1]
    assert keep["edit_mask"] == mask and "keep_mask" not in keep
    prompt["negative picture"] = {"class_type": "ImageInvert", "inputs": {"image": keep["source_frames"]}}
    prompt["edit"] = {
        "class_type": "ImageCompositeMasked",
        "inputs": {
            "destination": keep["source_frames"],
            "source": ["negative picture", 0],
            "mask": mask,
            "x": 0,
            "y": 0,
            "resize_source": False,
        },
    }
    keep["edited_frames"] = ["edit", 0]
    shown = [key for key, node in prompt.items() if keep_text(prompt, node)]
    assert len(shown) == 1, "the workflow shows what Keep Region measured"
    needed = behind(prompt, shown[0])
    assert shown_psnr(server.queue(needed)) > LEAST_PSNR
    turned = copy.deepcopy(needed)
    turned["inverted"] = {"class_type": "InvertMask", "inputs": {"mask": mask}}
    inputs_of(turned, "MagDiffKeepRegion")["edit_mask"] = ["inverted", 0]
    assert shown_psnr(server.queue(turned)) < LEAST_PSNR


def keep_text(prompt, node) -> bool:
    return node["class_type"] == "PreviewAny" and node["inputs"]["source"] == [node_id(prompt, "MagDiffKeepRegion"), 2]


def behind(prompt, last):
    """The part of a prompt that node `last` needs, with it."""
    needed, open_ends = {}, [last]
    while open_ends:
        key = open_ends.pop()
        needed[key] = prompt[key]
        open_ends += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return needed


@pytest.mark.parametrize("name", workflow_checks.REVIDEO)
def test_the_settings_are_those_of_the_published_model(name):
    nodes = {node["type"]: node for node in workflow_checks.read(name)["nodes"]}
    load = nodes["MagDiffLoadReVideo"]
    (hint,) = load["properties"]["models"]
    assert load["widgets_values"] == [hint["name"]] == ["model.ckpt"]
    assert (hint["url"], hint["directory"]) == ("https://huggingface.co/Adapter/ReVideo/resolve/main/model.ckpt", "checkpoints")
    if name == "revideo_long":
        resolution, _, _, *rest = nodes["MagDiffReVideoLongVideo"]["widgets_values"]
        assert resolution == "1 MP (as released)"
        assert rest[:2] == [14, 1], "windows of 14 with one common frame, as in the paper"
        assert rest[6:12] == [25, 4, 1, "euler", "karras", 1]
        assert rest[-5:] == ["safm", "default", 10, 127, 0.02]
    else:
        assert nodes["VideoLinearCFGGuidance"]["widgets_values"] == [1]
        assert nodes["KSampler"]["widgets_values"][2:] == [25, 4, "euler", "karras", 1]
        resolution, _, _, frames, fps, bucket, augmentation, *_ = nodes["MagDiffReVideoImageConditioning"]["widgets_values"]
        assert (resolution, frames, fps, bucket, augmentation) == ("1 MP (as released)", 14, 10, 127, 0.02)
        assert nodes["MagDiffSAFMTrajectoryFuse"]["widgets_values"] == [1, 0, 1, "safm", "default"]


@pytest.mark.browser
def test_the_workflows_load_in_the_page(server, page):
    """Dropped on the canvas they bring every node and link, and what the page would send is what the tests above ran."""
    from browser import driver

    for name in workflow_checks.REVIDEO:
        saved = workflow_checks.read(name)
        types = driver.drop_workflow(page, workflow_checks.WORKFLOWS / f"{name}.json")
        assert sorted(types) == sorted(node["type"] for node in saved["nodes"])
        assert page.get_by_text("Missing node").count() == 0
        assert page.evaluate("() => app.graph.serialize().links.length") == len(saved["links"])
        sent = page.evaluate("async () => (await app.graphToPrompt()).output")
        compare_with_page(as_prompt(server, name), sent, server.object_info())
