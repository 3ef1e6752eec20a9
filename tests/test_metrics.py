"""Closed-form measurements of procedural clips: right on true pixels, at chance on wrong ones, equal to plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from magdiff_core.data import procedural
from magdiff_core.metrics.background import fit_background, flicker
from magdiff_core.metrics.clip import measure_clip, split_clip
from magdiff_core.metrics.foreground import UNTRACKED, foreground_of_border, motion_of
from magdiff_core.metrics.subject import LEAST_INSIDE, MOST_ERROR, Template, TemplateSearch, nearest

CLIPS = 32
OTHERS = 7


def share(hits) -> float:
    hits = list(hits)
    return sum(bool(hit) for hit in hits) / len(hits)


@pytest.fixture(scope="module")
def clips():
    """Source and target specs, the target's frames, the true template and others of each clip."""
    generator = torch.Generator().manual_seed(71)
    source, target = procedural.cross_pairs(CLIPS, generator)
    others = procedural.sample(CLIPS * OTHERS, generator, "test")
    pictures, masks = procedural.render(source, 1)
    other_pictures, other_masks = procedural.render(others, 1)
    given = [Template(pictures[i, 0], masks[i, 0]) for i in range(CLIPS)]
    rest = [Template(other_pictures[i, 0], other_masks[i, 0]) for i in range(CLIPS * OTHERS)]
    return source, target, procedural.render(target)[0], given, [rest[i::CLIPS] for i in range(CLIPS)]


@pytest.fixture(scope="module")
def measured(clips):
    _, _, frames, given, others = clips
    return [measure_clip(frames[i], [given[i], *others[i]]) for i in range(CLIPS)]


def test_true_pixels_are_read_right(clips, measured):
    _, target, _, _, _ = clips
    assert share(m.motion == k for m, k in zip(measured, target.motion)) >= 0.96
    assert share(m.background_colour == k for m, k in zip(measured, target.background_colour)) >= 0.98
    assert share(m.pattern == k for m, k in zip(measured, target.pattern)) >= 0.95
    assert share(m.nearest == 0 for m in measured) >= 0.9
    assert sum(m.subject_rmse for m in measured) / CLIPS < 0.06
    assert max(m.flicker for m in measured) < 0.002


def test_another_clip_scores_nothing(clips, measured):
    source, _, _, _, _ = clips
    # The source's motion and background colour are never the target's.
    assert share(m.motion == k for m, k in zip(measured, source.motion)) <= 0.04
    assert share(m.background_colour == k for m, k in zip(measured, source.background_colour)) <= 0.02


def test_a_subject_that_is_not_there_is_at_chance(clips):
    _, _, frames, given, others = clips
    chosen = [measure_clip(frames[i], [*others[i], others[(i + 1) % CLIPS][0]]) for i in range(16)]
    assert share(m.nearest == 0 for m in chosen) <= 0.45
    assert sum(m.subject_rmse for m in chosen) / 16 > 0.12


def test_the_place_of_the_true_candidate_does_not_matter(clips):
    _, _, frames, given, others = clips
    hits = [measure_clip(frames[i], [*others[i], given[i]]).nearest == OTHERS for i in range(12)]
    assert share(hits) >= 0.9


def test_blur_and_noise_do_not_hide_the_classes(clips):
    _, target, frames, _, _ = clips
    noise = torch.randn(*frames.shape[:2], 3, 16, 16, generator=torch.Generator().manual_seed(3)).flatten(0, 1)
    noise = torch.nn.functional.interpolate(noise, size=64, mode="bilinear").movedim(1, -1).reshape(frames.shape)
    worn = (frames + 0.08 * noise).clamp(0, 1)
    found = [split_clip(clip) for clip in worn]
    assert share(motion_of(mask) == k for (mask, _), k in zip(found, target.motion)) >= 0.9
    assert share(fit.colour == k for (_, fit), k in zip(found, target.background_colour)) >= 0.95
    assert share(fit.pattern == k for (_, fit), k in zip(found, target.pattern)) >= 0.9


def disc(x, y, radius) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


@pytest.mark.parametrize(
    ("name", "step", "growth"),
    [
        ("moves right", (2, 0), 0), ("moves left", (-2, 0), 0), ("moves up", (0, -2), 0), ("moves down", (0, 2), 0),
        ("stays still", (0, 0), 0), ("grows", (0, 0), 0.06), ("shrinks", (0, 0), -0.06),
    ],
)  # fmt: skip
def test_motion_of_a_disc(name, step, growth):
    masks = torch.stack([disc(32 + step[0] * t, 32 + step[1] * t, 12 * math.exp(growth * t)) for t in range(8)])
    assert procedural.MOTIONS[motion_of(masks)] == name


def test_a_subject_that_vanishes_is_not_tracked():
    masks = torch.stack([disc(32, 32, 12 if t < 7 else 0) for t in range(8)])
    assert motion_of(masks) == UNTRACKED


def test_a_plain_clip_has_no_foreground():
    assert not foreground_of_border(torch.full((2, 64, 64, 3), 0.4)).any()


def test_a_drifting_pattern_keeps_its_name_and_flickers():
    spec = procedural.sample(40, torch.Generator().manual_seed(2))
    striped = spec.select((spec.pattern == procedural.PATTERNS.index("striped")).nonzero()[:1, 0])
    clip = torch.cat([procedural.background(striped).roll(4 * t, 1) for t in range(5)])
    nothing = torch.zeros(5, 64, 64)
    assert procedural.PATTERNS[fit_background(clip, nothing).pattern] == "striped"
    assert flicker(clip, nothing) > 0.02


def test_flicker_counts_the_background_only():
    mask = disc(20, 20, 10).float().expand(8, 64, 64)
    clip = torch.full((8, 64, 64, 3), 0.5)
    clip[1::2] += 0.1
    clip[:, 5:35, 5:35][1::2] -= 0.1
    held = clip.clone()
    held[mask > 0] = torch.rand(int(mask.sum()), 3, generator=torch.Generator().manual_seed(0))
    # Inside the square the background stands still; outside, every step is 0.1.
    free = 1 - torch.nn.functional.max_pool2d(mask[:1], 7, 1, 3)[0]
    square = free[5:35, 5:35].sum()
    assert flicker(held, mask) == pytest.approx(0.1 * float((free.sum() - square) / free.sum()), rel=1e-4)


def test_fit_background_names_a_wrong_size():
    with pytest.raises(ValueError, match=r"\[8, 32, 32, 3\]"):
        fit_background(torch.zeros(8, 32, 32, 3), torch.zeros(8, 32, 32))


def naive(frame, background, colours, weight):
    """Smallest mean squared error and largest saving over all places whose centre lies in the frame, by loops."""
    side_y, side_x = weight.shape
    error, saved = math.inf, -math.inf
    off = (frame - background).square().sum(-1).clamp_max(MOST_ERROR)
    for top in range(-(side_y // 2), frame.shape[0] - side_y // 2):
        for left in range(-(side_x // 2), frame.shape[1] - side_x // 2):
            rows, columns = torch.arange(top, top + side_y), torch.arange(left, left + side_x)
            valid_y, valid_x = (rows >= 0) & (rows < frame.shape[0]), (columns >= 0) & (columns < frame.shape[1])
            w = weight[valid_y][:, valid_x]
            if w.sum() < LEAST_INSIDE * weight.sum():
                continue
            place = (rows[valid_y][:, None], columns[valid_x][None])
            squared = ((frame[place] - colours[valid_y][:, valid_x]).square().sum(-1) * w).sum()
            error = min(error, float(squared / (3 * w.sum())))
            saved = max(saved, float((off[place] * w).sum() - squared))
    return error, saved


def test_the_search_equals_plain_loops():
    generator = torch.Generator().manual_seed(9)
    frame, background = torch.rand(24, 24, 3, generator=generator), torch.rand(24, 24, 3, generator=generator)
    picture, solid = torch.rand(24, 24, 3, generator=generator), torch.zeros(24, 24)
    solid[4:15, 6:15] = 1
    # The antialiased rim does not count: one pixel less on each side.
    inner = torch.zeros(11, 9)
    inner[1:-1, 1:-1] = 1
    error, saved = naive(frame, background, picture[4:15, 6:15], inner)
    search = TemplateSearch(frame[None], background[None])
    template = Template(picture, solid)
    assert float(search.rmse(template, [1.0])) == pytest.approx(math.sqrt(error), rel=1e-4)
    assert float(search.explained(template, [1.0])) == pytest.approx(saved, rel=1e-4)


def test_rmse_is_the_offset_of_a_moved_and_brightened_subject():
    generator = torch.Generator().manual_seed(4)
    picture = 0.2 + 0.5 * torch.rand(64, 64, 3, generator=generator)
    mask = disc(30, 30, 10).float()
    moved = torch.zeros(1, 64, 64, 3)
    moved[0, 7:, :-4] = (picture * mask[..., None])[:-7, 4:] + 0.1
    search = TemplateSearch(moved, torch.zeros(1, 64, 64, 3))
    assert float(search.rmse(Template(picture, mask))) == pytest.approx(0.1, abs=1e-3)


def test_a_candidate_of_the_background_colour_gains_nothing():
    clip = torch.zeros(1, 64, 64, 3) + torch.tensor([0.2, 0.6, 0.2])
    background = clip.clone()
    clip[0][disc(30, 30, 10)] = torch.tensor([0.7, 0.2, 0.1])
    green = Template(background[0], disc(32, 32, 6).float())
    reddish = Template(torch.zeros(64, 64, 3) + torch.tensor([0.6, 0.25, 0.15]), disc(32, 32, 10).float())
    assert nearest(TemplateSearch(clip, background), [green, reddish]) == 1
