"""Sliding windows and colour match as plain numbers."""

from __future__ import annotations

import pytest
import torch

from magdiff_core.motion.colour_match import match_colours
from magdiff_core.motion.windows import CROSS_FADE, HOLD, Window, fade_weights, join, plan_windows


def spans(*plan: int) -> list[tuple[int, int, int]]:
    return [(window.start, window.stop, window.shared) for window in plan_windows(*plan)]


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        ((14, 14, 1), [(0, 14, 0)]),
        ((14, 14, 13), [(0, 14, 0)]),
        ((27, 14, 1), [(0, 14, 0), (13, 27, 1)]),
        ((15, 14, 1), [(0, 14, 0), (1, 15, 13)]),
        ((26, 14, 1), [(0, 14, 0), (12, 26, 2)]),
        ((24, 14, 4), [(0, 14, 0), (10, 24, 4)]),
        ((5, 3, 2), [(0, 3, 0), (1, 4, 2), (2, 5, 2)]),
        ((5, 2, 1), [(0, 2, 0), (1, 3, 1), (2, 4, 1), (3, 5, 1)]),
    ],
)
def test_known_plans(plan, wanted):
    assert spans(*plan) == wanted


def test_the_papers_clip_of_90_frames():
    """Seven windows, each from the last frame of the one before; the last is moved back from 78 to end with the clip."""
    assert [start for start, *_ in spans(90, 14, 1)] == [0, 13, 26, 39, 52, 65, 76]
    assert [shared for *_, shared in spans(90, 14, 1)] == [0, 1, 1, 1, 1, 1, 3]
    assert len(spans(92, 14, 1)) == 7 and len(spans(93, 14, 1)) == 8


@pytest.mark.parametrize("frames", range(5, 40))
@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_every_plan_covers_the_clip_with_whole_windows(frames, overlap):
    plan = plan_windows(frames, 5, overlap)
    assert plan[0].start == 0 and plan[-1].stop == frames
    assert [window.index for window in plan] == list(range(len(plan)))
    for before, window in zip(plan, plan[1:], strict=False):
        assert window.stop - window.start == 5
        assert window.shared == before.stop - window.start >= overlap
        assert window.shared == overlap or window is plan[-1]
        assert window.stop > before.stop, "each brings new frames"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ((90, 14, 0), "overlap is 0, window_frames 14: give at least 1 and at most 13"),
        ((90, 14, 14), "overlap is 14, window_frames 14"),
        ((13, 14, 1), "source_frames has 13 frames, a window 14"),
    ],
)
def test_impossible_plans_are_refused_with_numbers(plan, words):
    with pytest.raises(ValueError, match=words):
        plan_windows(*plan)


def test_fade_weights_start_at_the_reference_and_reach_one_behind():
    assert fade_weights(1).tolist() == [0.0]
    assert fade_weights(4).tolist() == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("mode", "common"), [(HOLD, [10.0, 10.0]), (CROSS_FADE, [10.0, 15.0])])
def test_joining_keeps_or_mixes_common_frames_and_leaves_the_others(mode, common):
    clip = torch.full((7, 1, 1, 3), -1.0)
    join(clip, torch.full((4, 1, 1, 3), 10.0), Window(0, 0, 4, 0), mode)
    join(clip, torch.full((4, 1, 1, 3), 20.0), Window(1, 2, 6, 2), mode)
    assert clip[:, 0, 0, 0].tolist() == [10.0, 10.0, *common, 20.0, 20.0, -1.0]


def picture(frames: int = 2, seed: int = 1) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(frames, 8, 8, 3, generator=torch.Generator().manual_seed(seed))


def half() -> torch.Tensor:
    edit_region = torch.zeros(1, 8, 8)
    edit_region[:, :, 4:] = 1.0
    return edit_region


def test_colours_that_drifted_come_back_and_the_edit_follows():
    """Drift x -> a x + b, its own for each frame and channel, is undone on both sides of the border; the edit is no part of it."""
    source, clip = picture(), picture(seed=2)
    clip[:, :, :4] = source[:, :, :4]
    gain = torch.tensor([[0.9, 1.1, 0.8], [1.05, 0.95, 1.0]])[:, None, None]
    offset = torch.tensor([[0.05, -0.05, 0.1], [0.0, 0.02, -0.1]])[:, None, None]
    matched = match_colours(clip * gain + offset, source, half())
    torch.testing.assert_close(matched, clip, atol=1e-5, rtol=0)


def test_one_region_for_all_frames_or_one_a_frame():
    source, clip = picture(), picture(seed=2)
    each = torch.cat((half(), 1.0 - half()))
    matched = match_colours(clip, source, each)
    assert torch.equal(matched[:1], match_colours(clip, source, half())[:1])
    assert torch.equal(matched[1:], match_colours(clip[1:], source[1:], 1.0 - half()))


def test_where_everything_is_edited_nothing_is_matched():
    clip = picture(seed=2)
    assert torch.equal(match_colours(clip, picture(), torch.ones(1, 8, 8)), clip)


def test_a_flat_surrounding_gives_its_mean_only_and_no_wild_contrast():
    clip = picture(1, seed=2)
    clip[:, :, :4] = 0.4
    matched = match_colours(clip, torch.full_like(clip, 0.5), half())
    torch.testing.assert_close(matched[:, :, :4], torch.full((1, 8, 4, 3), 0.5))
    torch.testing.assert_close(matched[:, :, 4:], clip[:, :, 4:] + 0.1, atol=1e-5, rtol=0)
    faint = picture(1, seed=3) * 0.01
    spread, before = (frames.std((0, 1, 2)) for frames in (match_colours(faint, picture(1), half()), faint))
    torch.testing.assert_close(spread, 2.0 * before, atol=1e-4, rtol=1e-3)


def test_the_input_is_left_alone_and_the_result_is_a_picture():
    clip = picture(seed=2)
    before = clip.clone()
    matched = match_colours(clip, picture().clamp(min=0.75) * 1.3, half())
    assert torch.equal(clip, before)
    assert matched.min() >= 0.0 and matched.max() <= 1.0
