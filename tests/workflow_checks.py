"""What the tests of the example workflows share: where they lie, their pictures, and what came out of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dev.workflow import to_api

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
SMALL = ("generate_small", "edit_small")
SD21 = ("generate_sd21", "edit_sd21")
REVIDEO = ("revideo_change_content", "revideo_change_motion", "revideo_change_both", "revideo_regions", "revideo_long")
OTHER_MODELS = ("apa_wan", "compose_vidrd", "neighbours_sd21")
ALL = (*SMALL, *SD21, *REVIDEO, *OTHER_MODELS)
LOADERS = {"LoadImage": "image", "LoadVideo": "file"}


def read(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def pictures(workflow: dict[str, Any]) -> list[Path]:
    """The files that a page-format workflow loads, where the repository keeps them."""
    return [WORKFLOWS / "input" / node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in LOADERS]


def upload_pictures(server: Any) -> None:
    """Put every example picture into the server's input folder, as a user does by dropping it on a node."""
    for file in sorted((WORKFLOWS / "input").iterdir()):
        server.upload_image(file)


def as_prompt(server: Any, name: str) -> dict[str, Any]:
    """The workflow in the API format, its pictures uploaded."""
    upload_pictures(server)
    return to_api(read(name), server.object_info())


def inputs_of(prompt: dict[str, Any], class_type: str) -> dict[str, Any]:
    """The inputs of the one node of this type."""
    found = [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]
    assert len(found) == 1, f"{len(found)} nodes {class_type}"
    return found[0]


def saved_clip(server: Any, prompt: dict[str, Any], entry: dict[str, Any]) -> np.ndarray:
    """Frames `[F, H, W, 3]` of the clip that the workflow saved, 0..255."""
    kinds = {key: node["class_type"] for key, node in prompt.items()}
    files = [file for file in server.files(entry) if kinds.get(file["node"]) in ("SaveAnimatedWEBP", "SaveVideo")]
    assert len(files) == 1, f"{len(files)} clips were saved"
    return decode(server.view(files[0]))


def decode(data: bytes) -> np.ndarray:
    """Frames `[F, H, W, 3]` of a picture, an animated WebP or a film, 0..255."""
    if data[:4] in (b"RIFF", b"\x89PNG"):
        picture = Image.open(io.BytesIO(data))
        frames = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames)
    import av

    with av.open(io.BytesIO(data)) as film:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])


def check_clip(clip: np.ndarray, frames: int, size: int) -> None:
    """Right size, every frame shows something, and the frames differ."""
    assert clip.shape == (frames, size, size, 3)
    contrast = clip.std((1, 2, 3))
    assert contrast.min() > 3, f"a frame is blank: contrast {contrast}"
    moved = np.abs(clip[1:].astype(float) - clip[:-1]).mean((1, 2, 3))
    assert moved.min() > 0.2, f"frames repeat: they differ by {moved}"


def compare_with_page(ours: dict[str, Any], of_page: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Assert that our conversion of a workflow and the page's own say the same; the page also sends its own helpers' values."""
    assert ours.keys() == of_page.keys()
    for key, node in ours.items():
        theirs = of_page[key]
        assert theirs["class_type"] == node["class_type"]
        known = [name for group in object_info[node["class_type"]]["input"].values() for name in group]
        assert {name: value for name, value in theirs["inputs"].items() if name in known} == node["inputs"], node["class_type"]
