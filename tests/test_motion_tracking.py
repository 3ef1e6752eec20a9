"""Following points, choosing among them, and the preview: on clips whose motion is known."""

from __future__ import annotations

import math

import pytest
import torch

from magdiff_core.motion.motion_map import motion_map
from magdiff_core.motion.point_tracking import follow_points, grid_points, path_lengths, sample_by_length
from magdiff_core.motion.preview import preview_frames, track_colors

pytest.importorskip("cv2")

SIDE = 96


def texture(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth pattern without repetition."""
    waves = ((0.31, 0.13), (-0.17, 0.29), (0.11, -0.23), (0.05, 0.37), (0.41, 0.07))
    return 0.5 + 0.1 * sum(torch.sin(a * x + b * y + 3 * a) for a, b in waves)


def clip(where, frames: int = 6) -> torch.Tensor:
    """`where(x, y, frame)` gives the place in the pattern that pixel centre (x, y) shows."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    return torch.stack([texture(*where(x, y, frame)) for frame in range(frames)])[..., None].expand(-1, -1, -1, 3)


def shifted(dx: float, dy: float, frames: int = 6) -> torch.Tensor:
    return clip(lambda x, y, frame: (x - dx * frame, y - dy * frame), frames)


POINTS = torch.tensor([[30.5, 40.5], [50.0, 30.25], [60.7, 55.1]])


@pytest.mark.parametrize(("dx", "dy"), [(1.5, 0.0), (0.0, -2.0), (2.25, 1.75), (-3.0, 2.0)])
def test_a_shift_is_found_to_a_tenth_of_a_pixel(dx, dy):
    path, visibility = follow_points(shifted(dx, dy), POINTS)
    expected = POINTS + torch.arange(6)[:, None, None] * torch.tensor([dx, dy])
    assert (path - expected).abs().max() < 0.1
    assert visibility.all()


def test_a_turn_is_followed():
    """By 17 degrees. The patch itself is taken as not turning, so some of a pixel gets lost on the way."""
    middle, angle = SIDE / 2, 0.06

    def turned(x, y, frame):
        c, s = math.cos(-angle * frame), math.sin(-angle * frame)
        return c * (x - middle) - s * (y - middle) + middle, s * (x - middle) + c * (y - middle) + middle

    path, visibility = follow_points(clip(turned), POINTS)
    c, s = math.cos(5 * angle), math.sin(5 * angle)
    expected = (POINTS - middle) @ torch.tensor([[c, s], [-s, c]]) + middle
    assert (path[5] - expected).norm(dim=1).max() < 1.5
    assert (path[0] - expected).norm(dim=1).max() > 5.0
    assert visibility.all()


def test_it_follows_to_both_ends_from_any_frame():
    path, visibility = follow_points(shifted(1.5, -1.0), POINTS, start_frame=3)
    expected = POINTS + (torch.arange(6) - 3)[:, None, None] * torch.tensor([1.5, -1.0])
    assert (path - expected).abs().max() < 0.1
    assert visibility.all()


def test_a_point_that_leaves_the_picture_is_lost_and_stays_lost():
    path, visibility = follow_points(shifted(4.0, 0.0, 8), torch.tensor([[80.5, 40.5], [20.5, 40.5]]))
    seen = visibility[:, 0].tolist()
    assert seen[0] and not seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert visibility[:, 1].all()
    assert (path[..., 0] < SIDE).all()


def test_a_point_that_is_covered_is_lost():
    frames = shifted(1.0, 0.0).clone()
    noise = torch.rand(24, 24, 1, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 3)
    frames[3:, 28:52, 20:44] = noise
    _, visibility = follow_points(frames, torch.tensor([[32.5, 40.5], [70.5, 40.5]]))
    assert visibility[:, 0].tolist() == [True] * 3 + [False] * 3
    assert visibility[:, 1].all()


def test_flat_ground_cannot_be_followed():
    frames = torch.full((3, SIDE, SIDE, 3), 0.5)
    _, visibility = follow_points(frames, POINTS)
    assert visibility.sum(0).tolist() == [1, 1, 1]


def test_each_frame_is_counted_once():
    count = []
    follow_points(shifted(1.0, 0.0), POINTS, 2, each_frame=lambda: count.append(1))
    assert len(count) == 5


def test_a_grid_covers_the_picture_evenly():
    points = grid_points(96, 64, 32)
    assert points.tolist() == [[16, 16], [48, 16], [80, 16], [16, 48], [48, 48], [80, 48]]
    assert grid_points(20, 20, 32).tolist() == [[10, 10]]


def test_a_grid_inside_of_a_mask():
    inside = torch.zeros(64, 96)
    inside[:, :50] = 1.0
    assert grid_points(96, 64, 32, inside).tolist() == [[16, 16], [48, 16], [16, 48], [48, 48]]
    with pytest.raises(ValueError, match="grid of 32 pixels lies inside of edit_mask"):
        grid_points(96, 64, 32, torch.zeros(64, 96))
    with pytest.raises(ValueError, match="57600 points here, at most 4096"):
        grid_points(960, 960, 4)


def rays(*lengths: float) -> torch.Tensor:
    """Tracks that move to the right by so many pixels in all."""
    share = torch.linspace(0, 1, 5)[:, None]
    return torch.stack((share * torch.tensor(lengths), torch.zeros(5, len(lengths))), -1)


def test_lengths_count_visible_moves():
    path = rays(8.0, 4.0)
    visibility = torch.ones(5, 2, dtype=torch.bool)
    visibility[2, 0] = False
    assert path_lengths(path, visibility).tolist() == [4.0, 4.0]


def test_the_papers_sampling_takes_tracks_longer_than_the_mean():
    path = rays(*[1.0] * 20, *[9.0] * 15)
    everything = torch.ones(5, 35, dtype=torch.bool)
    counts = set()
    for seed in range(40):
        drawn = sample_by_length(path, everything, seed).tolist()
        assert 1 <= len(drawn) <= 10
        assert len(set(drawn)) == len(drawn) and drawn == sorted(drawn)
        assert min(drawn) >= 20
        counts.add(len(drawn))
    assert counts == set(range(1, 11))


def test_the_papers_sampling_prefers_long_tracks():
    # the mean is 5.2: three of length 6, three of length 18
    path = rays(*[0.1] * 10, *[6.0] * 3, *[18.0] * 3)
    everything = torch.ones(5, 16, dtype=torch.bool)
    alone = [drawn[0] for seed in range(600) if len(drawn := sample_by_length(path, everything, seed, most=1).tolist()) == 1]
    assert len(alone) == 600
    long = sum(index >= 13 for index in alone) / 600
    assert long == pytest.approx(0.75, abs=0.06)


def test_the_papers_sampling_repeats_and_copes_with_equal_and_still_tracks():
    everything = torch.ones(5, 4, dtype=torch.bool)
    for path in (rays(3.0, 3.0, 3.0, 3.0), rays(0.0, 0.0, 0.0, 0.0)):
        first, again = (sample_by_length(path, everything, 7) for _ in range(2))
        assert torch.equal(first, again)
        assert 1 <= len(first) <= 4


def test_the_preview_shows_the_point_where_the_motion_map_has_it():
    path = torch.tensor([[[10.5, 20.5]], [[30.5, 20.5]], [[50.5, 40.5]]])
    visibility = torch.ones(3, 1, dtype=torch.bool)
    shown = preview_frames(3, (SIDE, SIDE), path, visibility, colors=["#ff0000"])
    assert shown.shape == (3, SIDE, SIDE, 3)
    maps = motion_map(path, visibility, SIDE, SIDE)
    for frame in (1, 2):
        row, column = divmod(int(maps[frame].norm(dim=0).argmax()), SIDE)
        assert shown[frame, row, column].tolist() == pytest.approx([1.0, 0.0, 0.0])
        x, y = path[frame, 0].tolist()
        assert (row, column) == (int(y), int(x))
    assert shown[0, 20, 10, 0] == 1.0
    assert shown[1, 20, 20, 0] > 0.5, "the line behind it"
    assert shown[0, 20, 20].tolist() == shown[0, 0, 0].tolist()


def test_a_lost_point_is_a_ring():
    path = torch.full((2, 1, 2), 40.0)
    shown = preview_frames(2, (SIDE, SIDE), path, torch.tensor([[True], [False]]), colors=["#00ff00"])
    assert shown[0, 40, 40, 1] == 1.0
    assert shown[1, 40, 40].tolist() == shown[1, 0, 0].tolist()
    assert shown[1, 30:50, 30:50, 1].max() > 0.6


def test_the_region_is_tinted_and_large_clips_are_shown_smaller():
    frames = torch.full((1, 1000, 2000, 3), 0.5)
    edit_mask = torch.zeros(1, 1000, 2000)
    edit_mask[:, :500] = 1.0
    shown = preview_frames(2, (2000, 1000), torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), frames, edit_mask)
    assert shown.shape == (2, 384, 768, 3)
    inside, outside = shown[0, 10, 100], shown[0, 380, 100]
    assert inside[2] - inside[0] > 0.15
    assert outside.tolist() == [0.5, 0.5, 0.5]


def test_long_clips_are_shown_smaller(monkeypatch):
    from magdiff_core.motion import preview

    monkeypatch.setattr(preview, "MOST_PIXELS", 50_000)
    shown = preview_frames(20, (128, 72), torch.zeros(20, 0, 2), torch.zeros(20, 0, dtype=torch.bool))
    assert shown[..., 0].numel() <= 51_000
    assert shown.shape[2] / shown.shape[1] == pytest.approx(128 / 72, rel=0.05)


def test_tracks_have_colours_of_their_own():
    colors = track_colors(12, [None, "#010203"])
    assert colors[1] == (1, 2, 3)
    assert len(set(colors)) == 12
