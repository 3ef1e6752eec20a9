"""Paste-back of the kept region and its PSNR."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from magdiff_core.metrics.region import HIGHEST_PSNR, region_psnr
from magdiff_core.motion.resolution import BUDGETS, same_but_for_rounding, working_size
from magdiff_core.segment.paste import paste_kept_region

FRAMES, HEIGHT, WIDTH = 4, 40, 56


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=generator)
    edited = (source + 0.1 * torch.randn(source.shape, generator=generator)).clamp(0, 1)
    keep = torch.zeros(1, HEIGHT, WIDTH)
    keep[0, 8:30, 10:40] = 1
    return edited, source, keep


def numpy_psnr(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> float:
    error = (one.double().numpy() - other.double().numpy()) ** 2
    weights = np.broadcast_to(weights.double().numpy()[..., None], error.shape)
    return float(10 * np.log10(1 / np.average(error, weights=weights)))


def test_kept_pixels_equal_the_source_exactly(clip):
    edited, source, keep = clip
    frames, _, _ = paste_kept_region(edited, source, keep, None, 8)
    inside = keep[0] == 1
    assert torch.equal(frames[:, inside], source[:, inside])


def test_far_from_the_kept_region_the_edit_is_untouched(clip):
    edited, source, keep = clip
    frames, _, _ = paste_kept_region(edited, source, keep, None, 4)
    assert torch.equal(frames[:, :2], edited[:, :2])
    assert torch.equal(frames[:, :, 50:], edited[:, :, 50:])


def test_the_seam_runs_from_source_to_edit_on_the_edit_side():
    source, edited = torch.zeros(1, 32, 64, 3), torch.ones(1, 32, 64, 3)
    keep = torch.zeros(1, 32, 64)
    keep[..., :20] = 1
    frames, _, _ = paste_kept_region(edited, source, keep, None, 10)
    row = frames[0, 16, :, 0]
    assert (row[:20] == 0).all()
    assert (row[32:] == 1).all()
    assert (row[1:] >= row[:-1]).all()
    assert row[21:30].unique().numel() >= 5


def test_without_feather_the_edge_is_hard(clip):
    edited, source, keep = clip
    frames, _, _ = paste_kept_region(edited, source, keep, None, 0)
    assert torch.equal(frames, torch.where(keep[..., None] == 1, source, edited))


def test_edit_mask_is_the_opposite(clip):
    edited, source, keep = clip
    one, other = paste_kept_region(edited, source, keep, None, 6), paste_kept_region(edited, source, None, 1 - keep, 6)
    assert torch.equal(one[0], other[0])
    assert one[1:] == other[1:]


def test_fractions_of_the_mask_mix(clip):
    edited, source, _ = clip
    keep = torch.full((1, HEIGHT, WIDTH), 0.25)
    frames, _, _ = paste_kept_region(edited, source, keep, None, 0)
    torch.testing.assert_close(frames, 0.25 * source + 0.75 * edited)


def test_psnr_is_that_of_the_kept_region_before_pasting(clip):
    edited, source, keep = clip
    _, psnr, text = paste_kept_region(edited, source, keep, None, 8)
    assert psnr == pytest.approx(numpy_psnr(edited, source, keep.expand(FRAMES, -1, -1)), abs=1e-6)
    assert f"{psnr:.1f} dB" in text
    assert "29.5 % of the picture" in text


def test_psnr_of_a_known_error():
    source = torch.zeros(2, 8, 8, 3)
    edited = source + 0.1
    edited[:, 4:] = 1.0
    weights = torch.zeros(1, 8, 8)
    weights[0, :4] = 1
    whole, frames = region_psnr(edited, source, weights)
    assert whole == pytest.approx(20.0, abs=1e-5)
    assert frames == pytest.approx([20.0, 20.0], abs=1e-5)


def test_psnr_over_frames_pools_errors_and_weighs_fractions():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.rand(3, 6, 7, 3, generator=generator), torch.rand(3, 6, 7, 3, generator=generator)
    weights = torch.rand(3, 6, 7, generator=generator)
    whole, frames = region_psnr(one, other, weights)
    assert whole == pytest.approx(numpy_psnr(one, other, weights), abs=1e-6)
    assert frames == pytest.approx([numpy_psnr(one[i : i + 1], other[i : i + 1], weights[i : i + 1]) for i in range(3)], abs=1e-6)


def test_equal_regions_give_100_instead_of_infinity(clip):
    _, source, keep = clip
    _, psnr, text = paste_kept_region(source, source, keep, None, 8)
    assert psnr == HIGHEST_PSNR == 100
    assert "100.0 dB" in text


def test_a_frame_without_kept_region_does_not_count(clip):
    edited, source, keep = clip
    keep = keep.repeat(FRAMES, 1, 1)
    keep[2] = 0
    frames, psnr, text = paste_kept_region(edited, source, keep, None, 0)
    assert torch.equal(frames[2], edited[2])
    assert psnr == pytest.approx(numpy_psnr(edited[[0, 1, 3]], source[[0, 1, 3]], keep[[0, 1, 3]]), abs=1e-6)
    assert "nan" not in text


def test_one_source_picture_serves_all_frames(clip):
    edited, source, keep = clip
    frames, _, _ = paste_kept_region(edited, source[:1], keep, None, 0)
    assert torch.equal(frames[3, 10, 12], source[0, 10, 12])


def test_the_worst_frame_is_named(clip):
    edited, source, keep = clip
    edited[2] = 1 - source[2]
    _, _, text = paste_kept_region(edited, source, keep, None, 0)
    assert "frame 2 of 4" in text


def test_masks_and_edits_of_another_size_are_resized_and_that_is_said(clip, caplog):
    edited, source, keep = clip
    small = torch.nn.functional.interpolate(edited.movedim(-1, 1), (38, 54)).movedim(1, -1)
    with caplog.at_level(logging.INFO, "magdiff"):
        frames, _, text = paste_kept_region(small, source, torch.ones(1, 20, 28), None, 0)
    assert torch.equal(frames, source)
    assert "edited_frames are 54x38, resized to the source's 56x40" in caplog.text
    assert "edited_frames are 54x38, resized to the source's 56x40" in text
    assert "keep_mask is 28x20, resized to 56x40" in caplog.text


SOURCES = [(640, 480), (1920, 1080), (1080, 1920), (854, 480), (672, 384), (1000, 300), (360, 640), (500, 500)]


@pytest.mark.parametrize("size", SOURCES)
def test_sizes_that_the_released_resolution_rule_makes_are_taken(size):
    for pixels in BUDGETS.values():
        assert same_but_for_rounding(working_size(*size, pixels), size)


def test_640x480_edited_at_1152x896_is_pasted_back():
    """The released rule changes this shape by 3.7 %."""
    source = torch.rand(1, 480, 640, 3)
    keep = torch.zeros(1, 480, 640)
    keep[:, :240] = 1
    frames, _, text = paste_kept_region(torch.rand(1, 896, 1152, 3), source, keep, None, 0)
    assert torch.equal(frames[:, :240], source[:, :240]) and frames.shape == source.shape
    assert "edited_frames are 1152x896, resized to the source's 640x480" in text


@pytest.mark.parametrize(
    ("edited", "source", "same"),
    [
        ((1024, 1024), (640, 480), False),  # crops to a square
        ((512, 512), (640, 480), False),
        ((1344, 768), (1024, 768), False),
        ((512, 512), (512, 544), True),  # 528 x 560 at most: 31 pixels a side
        ((512, 512), (512, 581), False),
        ((600, 400), (603, 397), True),  # multiples of 8: 4 pixels a side
        ((600, 400), (612, 392), False),
        ((601, 399), (602, 398), False),  # odd: whole pixels only
        ((601, 399), (1202, 799), True),
    ],
)
def test_how_much_rounding_explains(edited, source, same):
    """Against a search over all factors, and by hand."""
    multiple = next(step for step in (64, 32, 16, 8, 4, 2, 1) if not any(side % step for side in edited))
    factors = np.linspace(0.05, 4, 400_000)
    fits = [np.abs(factors * given - made) <= multiple / 2 for given, made in zip(source, edited, strict=True)]
    assert bool((fits[0] & fits[1]).any()) == same
    assert same_but_for_rounding(edited, source) == same


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_mask": None}, ("exactly one", "neither")),
        ({"edit_mask": torch.ones(1, HEIGHT, WIDTH)}, ("exactly one", "both")),
        ({"source_frames": torch.rand(3, HEIGHT, WIDTH, 3)}, ("edited_frames has 4 frames", "source_frames 3")),
        ({"keep_mask": torch.ones(3, HEIGHT, WIDTH)}, ("keep_mask has 3 frames", "images have 4")),
        ({"edited_frames": torch.rand(FRAMES, 40, 40, 3)}, ("40x40", "56x40")),
        ({"keep_mask": torch.zeros(1, HEIGHT, WIDTH)}, ("kept region is empty", "swapped")),
        ({"edited_frames": torch.full((FRAMES, HEIGHT, WIDTH, 3), float("nan"))}, ("edited_frames", "NaN")),
        ({"keep_mask": torch.full((1, HEIGHT, WIDTH), float("nan"))}, ("keep_mask", "NaN")),
        ({"source_frames": torch.rand(FRAMES, HEIGHT, WIDTH, 2)}, ("source_frames", "[4, 40, 56, 2]")),
    ],
)
def test_errors_name_input_numbers_and_way_out(clip, changes, words):
    edited, source, keep = clip
    given = {"edited_frames": edited, "source_frames": source, "keep_mask": keep, "edit_mask": None, "feather": 4} | changes
    with pytest.raises(ValueError) as caught:
        paste_kept_region(**given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_node(pack, clip):
    edited, source, keep = clip
    node = pack["MagDiffKeepRegion"]
    result = node.execute(edited, source, 8, keep_mask=keep)
    frames, psnr, text = result.args
    expected = paste_kept_region(edited, source, keep, None, 8)
    assert torch.equal(frames, expected[0])
    assert (psnr, text) == expected[1:]


def test_node_schema(pack):
    schema = pack["MagDiffKeepRegion"].GET_SCHEMA()
    assert [output.id for output in schema.outputs] == ["frames", "psnr", "text"]
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    assert {entry.id for entry in schema.inputs if entry.optional} == {"keep_mask", "edit_mask"}
