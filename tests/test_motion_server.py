"""Draw Trajectories and Track Points in a real server: lists, previews, and words that arrive."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.server

CORNERS = [[(0.0, 0.0), (0.5, 0.5)], [(0.5, 0.5), (1.0, 1.0)]]
DRAWING = {
    "v": 1,
    "size": [64, 48],
    "fps": 8,
    "frames": 5,
    "regions": [{"shape": "ellipse", "points": [{"u": u, "v": v} for u, v in pair]} for pair in CORNERS],
    "tracks": [{"points": [{"u": 0.25, "v": 0.5}, {"u": 0.75, "v": 0.5}], "curve": "smooth"}],
}


@pytest.fixture(scope="module")
def picture(server, tmp_path_factory) -> str:
    """Name of an uploaded picture with texture."""
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("input") / "texture.png"
    Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(file)
    return server.upload_image(file)


def test_a_drawing(server):
    prompt = {
        "draw": {"class_type": "MagDiffDrawTrajectories", "inputs": {"trajectories": json.dumps(DRAWING)}},
        "each": {"class_type": "MaskToImage", "inputs": {"mask": ["draw", 2]}},
        "seen": {"class_type": "PreviewImage", "inputs": {"images": ["each", 0]}},
    }
    outputs = server.queue(prompt)["outputs"]
    assert len(outputs["draw"]["images"]) == 1 and outputs["draw"]["animated"] == [True]
    # one list entry for each of two regions, each with five frames
    assert len(outputs["seen"]["images"]) == 2 * 5


def test_points_of_a_clip(server, picture):
    prompt = {
        "load": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "clip": {"class_type": "RepeatImageBatch", "inputs": {"image": ["load", 0], "amount": 4}},
        "track": {
            "class_type": "MagDiffTrackPoints",
            "inputs": {
                "source_frames": ["clip", 0],
                "start_from": "grid",
                "grid_spacing": 16,
                "points": "",
                "keep": "all",
                "seed": 0,
                "start_frame": 0,
                "tolerance": 1.0,
            },
        },
        "draw": {
            "class_type": "MagDiffDrawTrajectories",
            "inputs": {"trajectories": json.dumps(DRAWING), "source_frames": ["clip", 0]},
        },
    }
    outputs = server.queue(prompt)["outputs"]
    assert outputs["track"]["text"] == ["12 of 12 points were followed through all 4 frames."]
    assert "used for source_frames of 4" in outputs["draw"]["text"][0]


def test_a_wrong_string_stops_the_node_with_its_reason(server):
    prompt = {"draw": {"class_type": "MagDiffDrawTrajectories", "inputs": {"trajectories": "{}"}}}
    with pytest.raises(Exception, match='no version \\("v"\\)'):
        server.queue(prompt)
