"""Grow, feather, fill holes and the seam, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from magdiff_core.segment.boxes import box_of_mask, boxes_of_masks
from magdiff_core.segment.refine import feather_mask, fill_holes, grow_mask, seam


def disc(radius: int) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return rows**2 + columns**2 <= radius**2


@pytest.fixture
def blobs() -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal((2, 60, 83))
    return ndimage.gaussian_filter(noise, (0, 4, 4)) > 0.03


@pytest.mark.parametrize("pixels", [1, 2, 3, 7, 20, 64])
def test_growing_is_dilation_by_a_disc(blobs, pixels):
    got = grow_mask(torch.from_numpy(blobs).float(), pixels).numpy()
    # Dilation by a disc is everything within its radius; the exact distance transform is the faster way to say so.
    expected = np.stack([ndimage.distance_transform_edt(~frame) <= pixels for frame in blobs])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("pixels", [1, 4, 9])
def test_shrinking_is_erosion_by_a_disc_that_spares_the_rim(blobs, pixels):
    got = grow_mask(torch.from_numpy(blobs).float(), -pixels).numpy()
    expected = np.stack([ndimage.binary_erosion(frame, disc(pixels), border_value=1) for frame in blobs])
    np.testing.assert_array_equal(got, expected)


def test_growing_keeps_fractions():
    mask = np.random.default_rng(0).random((1, 30, 40)).astype(np.float32)
    expected = ndimage.grey_dilation(mask[0], footprint=disc(3), mode="constant", cval=0)
    np.testing.assert_array_equal(grow_mask(torch.from_numpy(mask), 3)[0].numpy(), expected)


def test_nothing_to_do_returns_the_mask_itself():
    mask = torch.rand(1, 8, 8)
    assert grow_mask(mask, 0) is mask
    assert feather_mask(mask, 0) is mask
    assert seam(mask, 0) is mask


def test_feather_is_a_gaussian(blobs):
    mask = blobs[0].astype(np.float32)
    got = feather_mask(torch.from_numpy(mask)[None], 6)[0].numpy()
    expected = ndimage.gaussian_filter(mask, 3.0, mode="nearest", truncate=3.0)
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_feather_wider_than_the_picture_works():
    assert torch.isfinite(feather_mask(torch.rand(1, 8, 8), 64)).all()


def test_holes_are_filled_but_bays_are_not(blobs):
    expected = np.stack([ndimage.binary_fill_holes(frame) for frame in blobs])
    assert (expected != blobs).any(), "the example has no hole"
    np.testing.assert_array_equal(fill_holes(torch.from_numpy(blobs).float()).numpy(), expected)


def test_filling_leaves_soft_edges_alone():
    mask = torch.zeros(1, 9, 9)
    mask[0, 2:7, 2:7] = 0.7
    mask[0, 4, 4] = 0.2
    filled = fill_holes(mask)
    assert filled[0, 4, 4] == 1
    mask[0, 4, 4] = 1
    assert torch.equal(filled, mask)


@pytest.mark.parametrize("pixels", [1, 2, 5, 8, 31])
def test_seam_is_one_inside_and_falls_to_zero_within_its_width(pixels):
    kept = np.pad(disc(12), 50)
    distance = ndimage.distance_transform_edt(~kept)
    weight = seam(torch.from_numpy(kept).float()[None], pixels)[0].numpy()
    assert (weight[kept] == 1).all()
    # The blur's window is a square, whose corner reaches sqrt(2) times half the width.
    assert weight[distance > 1.25 * pixels + 1].max() < 1e-6
    assert (weight[distance <= pixels / 2] > 0).all()
    means = [weight[(distance >= start) & (distance < start + 2)].mean() for start in range(1, pixels, 2)]
    assert all(near > far for near, far in zip(means, means[1:], strict=False) if near < 0.999 and far > 0.001)
    if pixels >= 5:
        assert means[0] > 0.7
        assert means[-1] < 0.3


def test_boxes_against_scipy(blobs):
    part = ndimage.label(blobs[0])[0] == 1
    rows, columns = ndimage.find_objects(part.astype(int))[0]
    expected = {
        "x": columns.start,
        "y": rows.start,
        "width": columns.stop - columns.start,
        "height": rows.stop - rows.start,
    }
    assert box_of_mask(torch.from_numpy(part).float()) == expected


def test_box_lists_have_one_entry_a_frame():
    masks = torch.zeros(3, 10, 12)
    masks[0, 2:5, 3:9] = 1
    masks[2, 9, 11] = 1
    first, last = {"x": 3, "y": 2, "width": 6, "height": 3}, {"x": 11, "y": 9, "width": 1, "height": 1}
    assert boxes_of_masks(masks) == [[first], [], [last]]
    assert boxes_of_masks(masks[:1]) == first
    assert boxes_of_masks(masks[1:2])["width"] == 0
