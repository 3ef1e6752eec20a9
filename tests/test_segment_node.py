"""Subject Segment as a node: inputs, outputs, errors."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

SIDE = 96


def run(pack, images: torch.Tensor, **changes):
    """Outputs by name."""
    node = pack["MagDiffSubjectSegment"]
    given = {
        "method": "GrabCut",
        "sam_model": "none",
        "box_x": 0,
        "box_y": 0,
        "box_width": 0,
        "box_height": 0,
        "positive_points": "",
        "negative_points": "",
        "track": True,
        "grow": 0,
        "feather": 0,
        "fill_holes": False,
        "whole_frame_if_none": False,
        "correction_frames": "",
    } | changes
    result = node.execute(images, **given)
    names = [output.id for output in node.GET_SCHEMA().outputs]
    return dict(zip(names, result.args, strict=True)) | {"ui": result.ui.as_dict()}


def discs(frames: int = 1, speed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc of radius 20 that moves to the right over a patterned green ground, and its masks."""
    noise = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ground = torch.stack([0.1 + 0 * rows, 0.5 + 0.2 * torch.sin(columns / 4.0) * torch.cos(rows / 6.0), 0.3 + 0 * rows], -1)
    images, masks = [], []
    for frame in range(frames):
        x = 40 + speed * frame
        mask = (columns - x) ** 2 + (rows - 48) ** 2 <= 400
        skin = torch.stack([0.8 + 0 * rows, 0.2 + 0.1 * torch.sin((columns - x) / 3.0), 0.15 + 0.1 * torch.cos(rows / 3.0)], -1)
        picture = torch.where(mask[..., None], skin, ground) + 0.01 * torch.randn(SIDE, SIDE, 3, generator=noise)
        images.append(picture.clamp(0, 1))
        masks.append(mask)
    return torch.stack(images).float(), torch.stack(masks).float()


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one > 0.5, other > 0.5
    return float((one & other).sum() / (one | other).sum())


BOX = {"box_x": 15, "box_y": 22, "box_width": 50, "box_height": 52}


def test_outputs_of_a_picture(pack):
    images, true = discs()
    got = run(pack, images, **BOX)
    assert list(got)[:5] == ["subject", "subject_mask", "edit_mask", "bounding_boxes", "preview"]
    assert overlap(got["subject_mask"], true) > 0.95
    assert torch.equal(got["edit_mask"], 1 - got["subject_mask"])
    assert torch.equal(got["subject"], images * got["subject_mask"][..., None])
    box = got["bounding_boxes"]
    assert abs(box["x"] - 20) <= 1
    assert abs(box["width"] - 41) <= 2
    assert got["preview"].shape == images.shape
    assert len(got["ui"]["images"]) == 1


def test_a_clip_is_followed(pack):
    images, true = discs(6)
    got = run(pack, images, **BOX)
    assert min(overlap(mask, other) for mask, other in zip(got["subject_mask"], true, strict=True)) > 0.9
    boxes = got["bounding_boxes"]
    assert len(boxes) == 6
    assert abs(boxes[5][0]["x"] - boxes[0][0]["x"] - 25) <= 2
    assert got["preview"].shape[0] == 6
    assert got["preview"].shape[1] > SIDE, "bars of confidence below"
    assert got["ui"]["animated"] == (True,)
    assert len(got["ui"]["images"]) == 1


def test_without_tracking_the_first_mask_serves_all_frames(pack):
    images, true = discs(4)
    got = run(pack, images, track=False, **BOX)
    assert torch.equal(got["subject_mask"], got["subject_mask"][:1].expand(4, -1, -1))
    assert got["preview"].shape == images.shape


def test_the_box_input_replaces_the_numbers(pack):
    images, true = discs()
    wired = run(pack, images, box={"x": 15, "y": 22, "width": 50, "height": 52}, box_x=70, box_width=20, box_height=10)
    assert torch.equal(wired["subject_mask"], run(pack, images, **BOX)["subject_mask"])


def test_its_own_boxes_can_be_given_back(pack):
    images, true = discs(4)
    boxes = run(pack, images, subject_mask=true)["bounding_boxes"]
    got = run(pack, images, box=boxes)
    assert min(overlap(mask, other) for mask, other in zip(got["subject_mask"], true, strict=True)) > 0.8


def test_points(pack):
    images, true = discs()
    points = json.dumps([{"x": 40, "y": 48}])
    got = run(pack, images, positive_points=points, negative_points='[{"x": 85, "y": 10}]')
    assert overlap(got["subject_mask"], true) > 0.9


def test_nothing_said_starts_in_the_middle(pack):
    images, true = discs()
    assert overlap(run(pack, images)["subject_mask"], true) > 0.9


def test_a_given_mask_is_used_as_it_is_fractions_too(pack):
    images, true = discs(3)
    soft = true * 0.6
    got = run(pack, images, subject_mask=soft)
    assert torch.equal(got["subject_mask"], soft)
    assert torch.equal(got["subject"], images * soft[..., None])


def test_one_given_mask_is_followed_or_serves_all(pack):
    images, true = discs(4)
    followed = run(pack, images, subject_mask=true[:1])["subject_mask"]
    assert overlap(followed[3], true[3]) > 0.9
    held = run(pack, images, subject_mask=true[:1], track=False)["subject_mask"]
    assert torch.equal(held, true[:1].expand(4, -1, -1))


def test_corrections_take_over(pack):
    images, true = discs(6)
    wrong = torch.zeros_like(true[:1])
    wrong[:, 75:95, 5:30] = 1
    changes = {"subject_mask": wrong, "correction_masks": true[3:4], "correction_frames": "3"}
    got = run(pack, images, **changes)["subject_mask"]
    assert torch.equal(got[3], true[3])
    assert overlap(got[5], true[5]) > 0.9
    assert overlap(got[2], true[2]) < 0.2
    held = run(pack, images, track=False, **changes)["subject_mask"]
    assert torch.equal(held, torch.cat([wrong.expand(3, -1, -1), true[3:4].expand(3, -1, -1)]))


def test_a_mask_of_another_size_is_resized_and_that_is_said(pack, caplog):
    images, true = discs()
    with caplog.at_level(logging.INFO, "magdiff"):
        got = run(pack, images, subject_mask=torch.nn.functional.interpolate(true[None], scale_factor=0.5, mode="area")[0])
    assert overlap(got["subject_mask"], true) > 0.9
    assert "subject_mask is 48x48, resized to 96x96" in caplog.text


def test_rgba_and_grey_work_and_that_is_said(pack, caplog):
    images, true = discs()
    with caplog.at_level(logging.INFO, "magdiff"):
        got = run(pack, torch.cat([images, torch.ones(1, SIDE, SIDE, 1)], -1), **BOX)
        assert torch.equal(got["subject_mask"], run(pack, images, **BOX)["subject_mask"])
        grey = run(pack, images[..., :1], **BOX)
    assert grey["subject"].shape == (1, SIDE, SIDE, 3)
    assert overlap(grey["subject_mask"], true) > 0.9
    assert "alpha channel: what is transparent turns black" in caplog.text
    assert "is grey" in caplog.text


def test_transparent_pixels_turn_black_as_those_outside_of_a_mask_do(pack):
    from magdiff_core.images import clean_images

    images, true = discs()
    alpha = 0.75 * true
    cut_out = torch.cat([images, alpha[..., None]], -1)
    assert torch.equal(clean_images(cut_out, "images"), run(pack, images, subject_mask=alpha)["subject"])


def test_grow_feather_and_holes(pack):
    images, true = discs()
    holed = true.clone()
    holed[:, 45:50, 38:43] = 0
    assert torch.equal(run(pack, images, subject_mask=holed, fill_holes=True)["subject_mask"], true)
    assert run(pack, images, subject_mask=true, grow=3)["subject_mask"].sum() > true.sum() * 1.2
    assert run(pack, images, subject_mask=true, grow=-3)["subject_mask"].sum() < true.sum() * 0.8
    soft = run(pack, images, subject_mask=true, feather=6)["subject_mask"]
    assert 0.1 < float(((soft > 0.05) & (soft < 0.95)).float().mean()) < 0.6


def test_whole_frame_rule_of_the_paper(pack):
    images, _ = discs(2)
    for mask in (torch.zeros(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE)):
        got = run(pack, images, subject_mask=mask, whole_frame_if_none=True)
        assert torch.equal(got["subject_mask"], torch.ones(2, SIDE, SIDE))
        assert torch.equal(got["subject"], images)


def test_a_given_mask_may_keep_all_but_a_small_subject(pack):
    """The background is kept and a subject of less than 5 % is replaced; the mask must not become the whole frame."""
    images, _ = discs(2)
    keep = torch.ones(2, SIDE, SIDE)
    keep[:, 10:20, 30:40] = 0
    assert keep.mean() > 0.95
    got = run(pack, images, subject_mask=keep, whole_frame_if_none=True)
    assert torch.equal(got["subject_mask"], keep) and not got["subject"][:, 10:20, 30:40].any()
    with pytest.raises(ValueError, match="taken as it is"):
        run(pack, images, subject_mask=keep)
    with pytest.raises(ValueError, match="not told apart"):  # one that is followed was made here
        run(pack, images, subject_mask=keep[:1], track=True)


def spoiled(value: float) -> torch.Tensor:
    images, _ = discs()
    images[0, 3, 4, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "changes", "words"),
    [
        (discs()[0], {"subject_mask": torch.zeros(1, SIDE, SIDE)}, ("mask is empty", "whole_frame_if_none")),
        (discs(3)[0], {"subject_mask": torch.zeros(3, SIDE, SIDE)}, ("empty in all 3 frames",)),
        (discs()[0], {"subject_mask": torch.ones(1, SIDE, SIDE)}, ("100.0 %", "95 %", "whole_frame_if_none")),
        (discs(4)[0], {"subject_mask": torch.ones(3, SIDE, SIDE)}, ("subject_mask has 3 frames", "images have 4")),
        (discs()[0], {"subject_mask": torch.full((1, SIDE, SIDE), float("nan"))}, ("subject_mask", "NaN")),
        (spoiled(float("nan")), {}, ("images holds 1 values", "NaN")),
        (spoiled(float("inf")), {}, ("images holds 1 values", "infinite")),
        (torch.rand(1, 4, 4, 3), {}, ("4x4", "8x8")),
        (torch.rand(1, SIDE, SIDE, 2), {}, ("images has shape [1, 96, 96, 2]", "height, width, 3")),
        (discs()[0], {"positive_points": '[{"x": 96, "y": 3}]'}, ("positive_points", "(96, 3)", "96x96")),
        (discs()[0], {"negative_points": "{x: 1}"}, ("negative_points", "not valid JSON")),
        (discs()[0], {"box_width": 10}, ("box", "height 0")),
        (discs()[0], {"box_x": 200, "box_width": 10, "box_height": 10}, ("outside the picture of 96x96",)),
        (discs(4)[0], {"box": [BOX] * 3}, ("box has boxes for 3 frames", "4")),
        (discs(4)[0], {"correction_frames": "2"}, ("nothing is wired to correction_masks",)),
        (discs(4)[0], {"correction_frames": "9", "correction_masks": discs()[1]}, ("frame 9", "0 to 3")),
        (discs(4)[0], {"correction_masks": discs()[1]}, ("names 0 frames", "1 correction masks")),
        (discs()[0], {"subject_mask": discs()[1], "grow": -40}, ("grow is -40", "left nothing")),
    ],
)
def test_errors_name_input_numbers_and_way_out(pack, images, changes, words):
    with pytest.raises(ValueError) as caught:
        run(pack, images, **changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_interruption_stops_between_frames(pack):
    import comfy.model_management

    images, _ = discs(4)
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(pack, images, **BOX)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert run(pack, images, **BOX)["subject_mask"].shape[0] == 4


def test_schema(pack):
    schema = pack["MagDiffSubjectSegment"].GET_SCHEMA()
    assert [output.io_type for output in schema.outputs] == ["IMAGE", "MASK", "MASK", "BOUNDING_BOX", "IMAGE"]
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    assert {entry.id for entry in schema.inputs if entry.optional} == {"box", "subject_mask", "correction_masks"}
    assert np.all([entry.id.isidentifier() for entry in schema.inputs])


def test_a_folder_that_others_registered_is_left_alone(pack):
    import folder_paths

    before = list(folder_paths.get_folder_paths("sams"))
    assert before
    folder_paths.add_model_folder_path("sams", "/elsewhere/sams")
    try:
        run(pack, discs()[0], **BOX)
        pack["MagDiffSubjectSegment"].GET_SCHEMA()
        assert folder_paths.get_folder_paths("sams") == [*before, "/elsewhere/sams"]
    finally:
        folder_paths.folder_names_and_paths["sams"][0].remove("/elsewhere/sams")
