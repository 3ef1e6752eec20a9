"""Draw Trajectories and Track Points, called as ComfyUI calls them."""

from __future__ import annotations

import json
import logging

import pytest
import torch

pytest.importorskip("cv2")

W, H, F = 64, 48, 5


def outputs(node, result) -> dict:
    names = [output.id for output in node.GET_SCHEMA().outputs]
    return dict(zip(names, result.args, strict=True)) | {"ui": result.ui}


def draw(pack, source_frames=None, **changes) -> dict:
    """The node on a drawing of one region and one track."""
    data = {
        "v": 1,
        "size": [W, H],
        "fps": 8,
        "frames": F,
        "regions": [{"shape": "rectangle", "points": [{"u": 0, "v": 0}, {"u": 0.5, "v": 0.5}]}],
        "tracks": [{"points": [{"u": 0.25, "v": 0.5}, {"u": 0.75, "v": 0.5}]}],
    }
    node = pack["MagDiffDrawTrajectories"]
    given = {} if source_frames is None else {"source_frames": source_frames}
    return outputs(node, node.execute(json.dumps({**data, **changes}), **given))


def clip(frames=F, height=H, width=W, seed=0) -> torch.Tensor:
    """Texture that moves 2 pixels to the right each frame."""
    noise = torch.rand(1, 3, height // 4 + 1, (width + 2 * frames) // 4 + 1, generator=torch.Generator().manual_seed(seed))
    wide = torch.nn.functional.interpolate(noise, (height, width + 2 * frames), mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    return torch.stack([wide[:, 2 * (frames - i) : 2 * (frames - i) + width] for i in range(frames)])


def track(pack, source_frames, **changes) -> dict:
    node = pack["MagDiffTrackPoints"]
    given = {
        "start_from": "grid",
        "grid_spacing": 16,
        "points": "",
        "keep": "all",
        "seed": 0,
        "start_frame": 0,
        "tolerance": 1.0,
    } | changes
    return outputs(node, node.execute(source_frames, **given))


def test_a_drawing_without_a_clip(pack):
    got = draw(pack)
    assert list(got)[:5] == ["tracks", "edit_mask", "edit_masks", "coordinates", "preview"]
    path = got["tracks"]["track_path"]
    assert path.dtype == torch.float32
    assert path[:, 0].tolist() == [[16, 24], [24, 24], [32, 24], [40, 24], [48, 24]]
    assert got["tracks"]["track_visibility"].tolist() == [[True]] * F
    assert got["edit_mask"].shape == (F, H, W)
    assert got["edit_mask"][0].sum() == W * H / 4 and got["edit_mask"][0, 0, 0] == 1
    assert len(got["edit_masks"]) == 1 and torch.equal(got["edit_masks"][0], got["edit_mask"])
    assert json.loads(got["coordinates"])[0][4] == {"x": 48.0, "y": 24.0}
    assert got["preview"].shape == (F, H, W, 3)
    assert len(got["ui"]["images"]) == 1 and got["ui"]["animated"] == (True,)
    assert got["ui"]["text"] == []


def test_cores_track_nodes_read_both_outputs(pack, comfy_session):
    from comfy_extras.nodes_wan import parse_json_tracks
    from comfy_extras.nodes_wanmove import WanMoveTracksFromCoords, WanMoveVisualizeTracks

    got = draw(pack)
    assert parse_json_tracks(got["coordinates"])[0][1] == {"x": 24.0, "y": 24.0}
    read = WanMoveTracksFromCoords.execute(got["coordinates"]).args[0]
    assert torch.equal(read["track_path"].cpu(), got["tracks"]["track_path"])
    shown = WanMoveVisualizeTracks.execute(clip(), 24, 4, 0.75, 4, got["tracks"]).args[0]
    assert shown.shape == (F, H, W, 3)


def test_a_connected_clip_replaces_size_and_length_and_says_so(pack, caplog):
    with caplog.at_level(logging.INFO, "magdiff"):
        got = draw(pack, torch.rand(3, 2 * H, 2 * W, 3))
    assert got["tracks"]["track_path"][:, 0].tolist() == [[32, 48], [64, 48], [96, 48]]
    assert got["edit_mask"].shape == (3, 2 * H, 2 * W)
    assert got["preview"].shape == (3, 2 * H, 2 * W, 3)
    size, length = got["ui"]["text"]
    assert size == "Drawn for 64x48, used for source_frames of 128x96."
    assert "5 frames" in length and "of 3" in length
    assert size in caplog.text


def test_a_single_picture_replaces_the_size_only(pack):
    got = draw(pack, torch.rand(1, H, 2 * W, 3))
    assert got["tracks"]["track_path"].shape == (F, 1, 2)
    assert got["preview"].shape == (F, H, 2 * W, 3)
    (note,) = got["ui"]["text"]
    assert "another shape, so the drawing is stretched" in note


def test_several_regions_are_a_list_and_a_union(pack):
    corners = [[(0, 0), (0.5, 0.5)], [(0.25, 0.25), (1, 1)]]
    regions = [{"shape": "rectangle", "points": [{"u": u, "v": v} for u, v in pair]} for pair in corners]
    got = draw(pack, regions=regions)
    assert len(got["edit_masks"]) == 2
    assert torch.equal(torch.maximum(*got["edit_masks"]), got["edit_mask"])


def test_an_empty_drawing_says_that_nothing_may_change(pack):
    got = draw(pack, regions=[], tracks=[])
    assert got["tracks"]["track_path"].shape == (F, 0, 2)
    assert got["edit_mask"].shape == (F, H, W) and got["edit_mask"].sum() == 0
    assert len(got["edit_masks"]) == 1
    assert got["coordinates"] == "[]"
    assert any("nothing may change" in note for note in got["ui"]["text"])


def test_the_default_string_works(pack):
    node = pack["MagDiffDrawTrajectories"]
    default = next(entry for entry in node.GET_SCHEMA().inputs if entry.id == "trajectories").default
    assert outputs(node, node.execute(default))["tracks"]["track_path"].shape == (14, 0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": 3}, "version 3"),
        ({"tracks": [{"name": "tail", "points": [{"u": 1.2, "v": 0.5}]}]}, r"track 0 \(tail\) is never visible .* 64x48"),
        ({"tracks": [{"points": [{"u": 0.5, "v": 0.5}], "visible": []}]}, "track 0 .* is never visible"),
        ({"regions": [{"shape": "ellipse", "points": [{"u": 0.5, "v": 0.5}] * 2}]}, "region 0 .*covers no pixel"),
    ],
)
def test_drawings_that_are_refused(pack, changes, words):
    with pytest.raises(ValueError, match=words):
        draw(pack, **changes)


def test_a_grid_is_followed(pack):
    got = track(pack, clip())
    assert list(got)[:3] == ["tracks", "coordinates", "preview"]
    path, visibility = got["tracks"]["track_path"], got["tracks"]["track_visibility"]
    assert path.shape[::2] == (F, 2) and visibility.shape == path.shape[:2]
    moves = (path[1:] - path[:-1])[visibility[1:]]
    off = (moves - torch.tensor([2.0, 0.0])).norm(dim=1)
    # patches on the picture's border see less
    assert off.median() < 0.01 and off.max() < 1.0
    assert visibility.all(0).sum() >= 6
    assert got["preview"].shape == (F, H, W, 3)
    assert "points were followed through all 5 frames" in got["ui"]["text"][0]


def test_given_points_keep_their_number_and_order(pack):
    got = track(pack, clip(), start_from="points", points='[{"x": 40, "y": 30}, {"x": 20, "y": 12}]', start_frame=2)
    path = got["tracks"]["track_path"]
    assert path[2].tolist() == [[40, 30], [20, 12]]
    assert path[4, :, 0].tolist() == pytest.approx([44, 24], abs=0.3)
    assert path[0, :, 0].tolist() == pytest.approx([36, 16], abs=0.3)


def test_the_grid_stays_inside_of_the_mask_of_the_start_frame(pack):
    edit_mask = torch.zeros(F, H, W)
    edit_mask[2, :, 32:] = 1.0
    got = track(pack, clip(), edit_mask=edit_mask, start_frame=2)
    assert (got["tracks"]["track_path"][2, :, 0] > 32).all()


def test_by_length_draws_by_seed(pack):
    drawn = [track(pack, clip(), keep="by length", seed=seed)["tracks"]["track_path"] for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert all(1 <= path.shape[1] <= 10 for path in drawn)
    assert len({path.shape[1] for path in drawn}) > 1


@pytest.mark.parametrize(
    ("frames", "changes", "words"),
    [
        (1, {}, "single picture"),
        (F, {"start_frame": 9}, "start_frame is 9, source_frames has frames 0 to 4"),
        (F, {"start_from": "points"}, "points is empty"),
        (F, {"start_from": "points", "points": '[{"x": 400, "y": 3}]'}, "outside"),
        (F, {"start_from": "points", "points": "here"}, "not valid JSON"),
        (F, {"edit_mask": torch.zeros(1, H, W)}, "lies inside of edit_mask"),
        (F, {"edit_mask": torch.zeros(2, H, W)}, "edit_mask has 2 frames"),
    ],
)
def test_what_cannot_be_followed_is_refused(pack, frames, changes, words):
    with pytest.raises(ValueError, match=words):
        track(pack, clip(frames), **changes)


def test_a_clip_without_structure_is_refused(pack):
    with pytest.raises(ValueError, match="none of the 12 points could be followed"):
        track(pack, torch.full((F, H, W, 3), 0.4))
