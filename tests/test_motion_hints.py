"""What the control branch is shown, from what the user gives."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from magdiff_core.motion import reference
from magdiff_core.motion.hints import EditRequest
from magdiff_core.motion.motion_map import motion_map
from magdiff_core.motion.resolution import BUDGETS, working_size

F, W, H = 3, 64, 48
PATH = torch.tensor([[[10.5, 20.5]], [[13.5, 20.5]], [[16.5, 24.5]]])
SEEN = torch.ones(F, 1, dtype=torch.bool)


def request(edit_mask=None, **changes) -> EditRequest:
    if edit_mask is None:
        edit_mask = torch.zeros(1, H, W)
        edit_mask[:, 8:40, 16:32] = 1.0
    frames = torch.rand(F, H, W, 3, generator=torch.Generator().manual_seed(0))
    return EditRequest(frames, edit_mask, PATH, SEEN, **changes)


def test_the_video_is_black_inside_of_the_region_in_every_frame_and_itself_outside():
    made = request()
    hints = made.hints(W, H)
    assert hints.frames == F
    assert hints.content.shape == (F, 3, H, W)
    inside = torch.zeros(H, W, dtype=torch.bool)
    inside[8:40, 16:32] = True
    assert (hints.content[..., inside] == -1.0).all()
    torch.testing.assert_close(hints.content[..., ~inside], made.source_frames.movedim(-1, 1)[..., ~inside] * 2 - 1)
    assert torch.equal(hints.edit_region[:, 0], inside.float().expand(F, -1, -1))
    assert hints.region_stands_still


def test_a_region_may_move():
    edit_mask = torch.zeros(F, H, W)
    for frame in range(F):
        edit_mask[frame, :, 4 * frame : 4 * frame + 8] = 1.0
    hints = request(edit_mask).hints(W, H)
    assert torch.equal(hints.edit_region[:, 0], edit_mask)
    assert not hints.region_stands_still


def test_the_region_is_cut_at_one_half():
    edit_mask = torch.linspace(0, 1, W).expand(1, H, W)
    hints = request(edit_mask).hints(W, H)
    assert hints.edit_region.unique().tolist() == [0.0, 1.0]
    assert hints.edit_region[0, 0, 0].sum() == W // 2


def test_the_motion_is_that_of_the_tracks():
    assert torch.equal(request().hints(W, H).motion, motion_map(PATH, SEEN, H, W))
    torch.testing.assert_close(request(map_mode="reference").hints(W, H).motion, reference.motion_map(PATH, H, W))


def test_at_another_size_tracks_and_moves_grow_and_the_filter_does_not():
    hints = request().hints(2 * W, 2 * H)
    assert hints.content.shape == (F, 3, 2 * H, 2 * W)
    assert hints.edit_region[0, 0].sum() == 4 * 32 * 16
    # the point arrives at (13.5, 20.5) * 2 on pixel edges, so at (26.5, 40.5) on pixel centres
    row, column = 40, 26
    got = hints.motion[1, :, row, column]
    near = math.exp(-0.5 / 200)
    torch.testing.assert_close(got, torch.tensor([0.0, 6.0]) * near, atol=0.02, rtol=0)
    far = torch.tensor(6 * math.exp(-(19.5**2 + 0.25) / 200))
    torch.testing.assert_close(hints.motion[1, 1, row, column + 20], far, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(640, 480), (854, 480), (1000, 300), (300, 1000)])
def test_every_size_of_the_resolution_rule_is_taken_and_a_crop_is_not(size):
    """1000x300 becomes 768x192 at the smallest budget: 20 % wider."""
    width, height = size
    source = torch.zeros(1, height, width, 3)
    made = EditRequest(source, torch.ones(1, height, width), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    for pixels in BUDGETS.values():
        wanted = working_size(width, height, pixels)
        assert made.hints(*wanted).content.shape[2:] == wanted[::-1]
    side = 64 * (min(size) // 64)
    with pytest.raises(ValueError, match=f"are {width}x{height}, the clip is sampled at {side}x{side}, another shape"):
        made.hints(side, side)


def test_a_region_that_is_too_thin_for_the_size_is_said(caplog):
    line = torch.zeros(1, H, W)
    line[:, :, 20] = 1.0
    with caplog.at_level(logging.WARNING, "magdiff"):
        assert request(line).hints(W, H).edit_region.any()
        assert request(torch.zeros(1, H, W)).hints(W // 4, H // 4).edit_region.sum() == 0
        assert not caplog.text, "an empty region was asked for"
        assert not request(line).hints(W // 4, H // 4).edit_region.any()
    assert "nothing of it is left at 16x12" in caplog.text


def test_bicubic_overshoot_stays_in_range():
    frames = (torch.arange(W) % 8 < 4).float()[None, None, :, None].expand(F, H, W, 3)
    made = EditRequest(frames, torch.zeros(1, H, W), PATH, SEEN)
    got = made.hints(96, 80).content
    assert (got.min(), got.max()) == (-1.0, 1.0)
