"""ReVideo from its checkpoint to an edited clip in a real server, on small random weights of the published layout."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import revideo_files
from PIL import Image

pytestmark = pytest.mark.server

F, SIDE = revideo_files.CLIP_FRAMES, 64
NAME = "small.safetensors"
DRAWING = {
    "v": 1,
    "size": [SIDE, SIDE],
    "fps": 8,
    "frames": F,
    "regions": [{"shape": "rectangle", "points": [{"u": 0.25, "v": 0.25}, {"u": 0.75, "v": 0.75}]}],
    "tracks": [{"points": [{"u": 0.4, "v": 0.5}, {"u": 0.6, "v": 0.5}]}],
}


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def prompt(server, source, comfy_session, tmp_path_factory) -> dict:
    folder = server.base / "models" / "magdiff"
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**revideo_files.weights(), **revideo_files.image_encoder(), **revideo_files.autoencoder()}
    file = revideo_files.save(folder / NAME, whole)
    picture = tmp_path_factory.mktemp("input") / "frame.png"
    Image.fromarray(source).save(picture)

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    yield {
        "load": node("MagDiffLoadReVideo", checkpoint=NAME),
        "frame": node("LoadImage", image=server.upload_image(picture)),
        "clip": node("RepeatImageBatch", image=["frame", 0], amount=F),
        "draw": node("MagDiffDrawTrajectories", trajectories=json.dumps(DRAWING), source_frames=["clip", 0]),
        "told": node(
            "MagDiffReVideoImageConditioning",
            clip_vision=["load", 1],
            vae=["load", 2],
            edited_frame=["frame", 0],
            resolution="custom",
            width=SIDE,
            height=SIDE,
            frames=F,
            fps=10,
            motion_bucket_id=127,
            augmentation_level=0.02,
            seed=23,
        ),
        "fuse": node(
            "MagDiffSAFMTrajectoryFuse",
            positive=["told", 0],
            negative=["told", 1],
            control=["load", 3],
            source_frames=["clip", 0],
            edit_mask=["draw", 1],
            tracks=["draw", 0],
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            fusion="safm",
            motion_maps="default",
        ),
        "guided": node("VideoLinearCFGGuidance", model=["load", 0], min_cfg=1.0),
        "sample": node(
            "KSampler",
            model=["guided", 0],
            positive=["fuse", 0],
            negative=["fuse", 1],
            latent_image=["told", 2],
            seed=1,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="karras",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "keep": node(
            "MagDiffKeepRegion", edited_frames=["decode", 0], source_frames=["clip", 0], feather=0, edit_mask=["draw", 1]
        ),
        "seen": node("PreviewImage", images=["keep", 0]),
    }
    file.unlink()


def pictures(server, entries: list[dict]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(server.view(entry))).convert("RGB")) for entry in entries])


def test_the_whole_chain(server, prompt, source):
    outputs = server.queue(prompt)["outputs"]
    clip = pictures(server, outputs["seen"]["images"])
    assert clip.shape == (F, SIDE, SIDE, 3)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[16:48, 16:48] = True
    assert (clip[:, ~inside] == source[~inside]).all(), "kept pixel for pixel"
    assert (clip[:, inside] != source[inside]).any()
    another = {**prompt, "fuse": {**prompt["fuse"], "inputs": {**prompt["fuse"]["inputs"], "strength": 0.0}}}
    plain = pictures(server, server.queue(another)["outputs"]["seen"]["images"])
    assert (plain[:, inside] != clip[:, inside]).any(), "the control acts"


def test_bad_input_stops_the_prompt_with_its_reason(server, prompt):
    empty = json.dumps({**DRAWING, "regions": []})
    wrong = {**prompt, "draw": {**prompt["draw"], "inputs": {**prompt["draw"]["inputs"], "trajectories": empty}}}
    with pytest.raises(Exception, match="edit_mask is empty: nothing of the video may change"):
        server.queue(wrong)
