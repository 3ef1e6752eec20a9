"""GrabCut on pictures whose true mask is known."""

from __future__ import annotations

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from magdiff_core.segment.grabcut import fill_small_holes, largest_parts, segment_grabcut, upsample_edge  # noqa: E402
from magdiff_core.segment.prompts import Prompt  # noqa: E402


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def textured_disc(height: int, width: int, centre: tuple[float, float], radius: float, seed: int = 0):
    """A disc of red-brown patches on a ground of blue-green ones, and its mask."""
    noise = np.random.default_rng(seed)

    def patches(colour: tuple[float, float, float]) -> np.ndarray:
        texture = cv2.resize(noise.random((12, 16, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(0.3 * texture + np.array(colour), 0, 1)

    rows, columns = np.mgrid[:height, :width]
    mask = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= radius**2
    picture = np.where(mask[..., None], patches((0.55, 0.25, 0.1)), patches((0.1, 0.35, 0.45)))
    picture = np.clip(picture + 0.01 * noise.standard_normal(picture.shape), 0, 1)
    return (picture * 255).astype(np.uint8), mask


@pytest.mark.parametrize("seed", [0, 1])
def test_box(seed):
    picture, mask = textured_disc(180, 240, (120, 90), 50, seed)
    got = segment_grabcut(picture, Prompt(boxes=((60, 30, 182, 150),)))
    assert got.dtype == bool
    assert got.shape == (180, 240)
    assert overlap(got, mask) >= 0.95


def test_points_alone():
    picture, mask = textured_disc(180, 240, (100, 90), 45)
    got = segment_grabcut(picture, Prompt(positive=((100, 90),), negative=((220, 20),)))
    assert overlap(got, mask) >= 0.9


def test_nothing_said_finds_what_is_in_the_middle():
    picture, mask = textured_disc(180, 240, (125, 85), 50)
    assert overlap(segment_grabcut(picture, Prompt()), mask) >= 0.9


def test_subject_at_the_rim_is_cut_by_the_rim_only():
    picture, mask = textured_disc(180, 240, (120, 175), 70)
    got = segment_grabcut(picture, Prompt(boxes=((45, 100, 195, 180),)))
    assert overlap(got, mask) >= 0.93
    assert got[-1, 120]


def test_edge_of_a_large_picture_follows_its_pixels():
    picture, mask = textured_disc(900, 1200, (600, 450), 250)
    got = segment_grabcut(picture, Prompt(boxes=((330, 180, 870, 720),)))
    assert got.shape == (900, 1200)
    assert overlap(got, mask) >= 0.97


def test_outside_of_the_box_is_never_subject():
    picture, _ = textured_disc(180, 240, (120, 90), 50)
    got = segment_grabcut(picture, Prompt(boxes=((60, 30, 150, 150),)))
    assert got[:, :59].sum() == 0
    assert got[:, 152:].sum() == 0
    assert got.any()


def test_a_negative_point_removes_a_second_object():
    picture, mask = textured_disc(180, 240, (80, 90), 40)
    other = cv2.circle(np.zeros((180, 240), np.uint8), (190, 90), 22, 1, -1) > 0
    picture[other] = (60, 160, 60)
    box = ((30, 40, 225, 140),)
    with_point = segment_grabcut(picture, Prompt(boxes=box, negative=((190, 90),), positive=((80, 90),)))
    assert (with_point & other).sum() < 0.05 * other.sum()
    assert overlap(with_point, mask) >= 0.9


def test_two_boxes_give_both_subjects():
    picture, mask = textured_disc(180, 240, (60, 90), 35)
    second, other = textured_disc(180, 240, (180, 90), 35)
    picture[other] = second[other]
    got = segment_grabcut(picture, Prompt(boxes=((20, 50, 100, 130), (140, 50, 220, 130))))
    assert overlap(got, mask | other) >= 0.93


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_picture_does_not_fail(value):
    picture = np.full((40, 50, 3), value, np.uint8)
    assert segment_grabcut(picture, Prompt(boxes=((10, 10, 40, 30),))).shape == (40, 50)
    assert segment_grabcut(picture, Prompt()).shape == (40, 50)
    assert segment_grabcut(picture, Prompt(positive=((20, 20),))).shape == (40, 50)


def test_the_same_picture_gives_the_same_mask():
    picture, _ = textured_disc(120, 160, (80, 60), 35)
    prompt = Prompt(boxes=((40, 20, 120, 100),))
    np.testing.assert_array_equal(segment_grabcut(picture, prompt), segment_grabcut(picture, prompt))


def test_specks_go_and_pointed_parts_stay():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True
    mask[30:33, 50:53] = True
    mask[35, 2] = True
    assert largest_parts(mask).sum() == 400
    pointed = np.zeros_like(mask)
    pointed[31, 51] = True
    assert largest_parts(mask, pointed).sum() == 409


def test_small_holes_are_filled_unless_pointed_at():
    mask = np.zeros((60, 60), bool)
    mask[5:55, 5:55] = True
    mask[10:14, 10:14] = mask[20:50, 20:50] = mask[5:9, 30:34] = False
    no_point = np.zeros_like(mask)
    filled = fill_small_holes(mask, no_point)
    assert filled[10:14, 10:14].all()
    assert not filled[20:50, 20:50].any(), "a large hole is part of the shape"
    assert not filled[5:9, 30:34].any(), "a bay is open"
    no_point[12, 12] = True
    np.testing.assert_array_equal(fill_small_holes(mask, no_point), mask)


def test_upsampled_edge_snaps_to_the_picture():
    picture, mask = textured_disc(400, 400, (200, 200), 120)
    rough = cv2.resize(mask.astype(np.uint8), (50, 50), interpolation=cv2.INTER_AREA) > 0
    smooth = cv2.resize(rough.astype(np.float32), (400, 400)) > 0.5
    assert overlap(upsample_edge(rough, picture), mask) >= overlap(smooth, mask)
