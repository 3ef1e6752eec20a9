"""The mask follows a textured disc through a clip whose true masks are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")

from magdiff_core.segment.flow import carry, telling_apart  # noqa: E402
from magdiff_core.segment.grabcut import segment_grabcut  # noqa: E402
from magdiff_core.segment.images import to_bytes  # noqa: E402
from magdiff_core.segment.preview import preview_frames  # noqa: E402
from magdiff_core.segment.prompts import Prompt  # noqa: E402
from magdiff_core.segment.track import WEAK, follow  # noqa: E402

HEIGHT, WIDTH, FRAMES = 192, 256, 16


def moving_disc(seed: int = 0, bar: tuple[int, int] | None = None, leave: bool = False):
    """A disc that moves about 9 pixels a frame, grows by half and, on request, passes behind a bar or leaves.

    Returns images [F, H, W, 3] and the masks of what can be seen of it [F, H, W].
    """
    noise = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    ground = cv2.resize(noise.random((24, 32, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    ground = 0.35 * ground + np.array([0.1, 0.35, 0.45]) + 0.06 * np.sin(columns / 5 + rows / 9)[..., None]
    skin = cv2.resize(noise.random((16, 16, 3)), (128, 128), interpolation=cv2.INTER_CUBIC)
    skin = (skin * np.array([0.3, 0.35, 0.25]) + np.array([0.65, 0.25, 0.05])).astype(np.float32)
    images, masks = [], []
    for time in np.linspace(0, 1, FRAMES, dtype=np.float32):
        radius = 28 * (1 + 0.5 * time)
        x, y = 60 + (260 if leave else 130) * time, 96 + 25 * np.sin(3 * time)
        across, down = (columns - x) / radius * 60 + 64, (rows - y) / radius * 60 + 64
        painted = cv2.remap(skin, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        cover = np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1)[..., None]
        picture, seen = ground * (1 - cover) + painted * cover, cover[..., 0] > 0.5
        if bar:
            hidden = (columns >= bar[0]) & (columns < bar[1])
            stripes = np.array([0.15, 0.12, 0.1]) + 0.1 * np.sin(rows / 4)[..., None]
            picture, seen = np.where(hidden[..., None], stripes, picture), seen & ~hidden
        picture = picture + 0.01 * noise.standard_normal(picture.shape)
        images.append(np.clip(picture, 0, 1).astype(np.float32))
        masks.append(seen)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)).float()


def overlaps(found: torch.Tensor, true: torch.Tensor) -> list[float]:
    found, true = found > 0.5, true > 0.5
    return [float((a & b).sum() / (a | b).sum().clamp(min=1)) for a, b in zip(found, true, strict=True)]


@pytest.mark.parametrize("seed", [0, 1])
def test_follows_a_moving_growing_subject(seed):
    images, true = moving_disc(seed)
    first = segment_grabcut(to_bytes(images[0]), Prompt(boxes=((25, 60, 95, 132),)))
    assert overlaps(torch.from_numpy(first)[None].float(), true[:1])[0] >= 0.9
    track = follow(images, {0: torch.from_numpy(first).float()})
    scores = overlaps(track.subject_mask, true)
    assert np.mean(scores) >= 0.95, scores
    assert min(scores) >= 0.85, scores
    assert track.weak == ()
    assert track.given == (0,)


def test_a_still_mask_would_not_do():
    _, true = moving_disc()
    assert np.mean(overlaps(true[:1].expand_as(true), true)) < 0.5


def test_leaving_the_picture_ends_in_an_empty_mask_and_no_confidence():
    images, true = moving_disc(leave=True)
    track = follow(images, {0: true[0]})
    gone = [index for index in range(FRAMES) if true[index].sum() == 0]
    assert len(gone) >= 2
    assert gone[-1] in track.weak
    assert set(gone) <= set(track.weak)
    assert track.confidence[:8].min() > 0.8
    assert track.subject_mask[gone].sum() < 20 * len(gone)


def test_passing_behind_something_is_shown_and_the_subject_is_found_again():
    images, true = moving_disc(seed=2, bar=(100, 135))
    track = follow(images, {0: true[0]})
    scores = overlaps(track.subject_mask, true)
    lost = [index for index in range(FRAMES) if scores[index] < 0.5]
    assert lost
    assert set(lost) <= set(track.weak), (lost, track.confidence)
    assert scores[-1] > 0.9
    assert track.confidence[-1] > WEAK


def test_a_correction_takes_over_from_its_frame_on():
    images, true = moving_disc()
    wrong = torch.zeros_like(true[0])
    wrong[120:180, 10:60] = 1
    alone = follow(images, {0: wrong})
    corrected = follow(images, {0: wrong, 8: true[8]})
    assert torch.equal(alone.subject_mask[:8], corrected.subject_mask[:8])
    assert torch.equal(corrected.subject_mask[8], true[8])
    assert corrected.confidence[8] == 1
    assert np.mean(overlaps(alone.subject_mask[8:], true[8:])) < 0.2
    assert np.mean(overlaps(corrected.subject_mask[8:], true[8:])) > 0.9


def test_an_empty_correction_ends_the_track():
    images, true = moving_disc()
    track = follow(images[:8], {0: true[0], 4: torch.zeros_like(true[0])})
    assert track.subject_mask[4:].sum() == 0
    assert track.weak == ()
    assert overlaps(track.subject_mask[:4], true[:4])[3] > 0.9


def test_follows_backwards_too():
    images, true = moving_disc()
    track = follow(images, {10: true[10]})
    assert np.mean(overlaps(track.subject_mask, true)) > 0.9


def test_given_masks_are_returned_untouched():
    images, true = moving_disc()
    soft = true[0] * 0.8
    assert torch.equal(follow(images[:3], {0: soft}).subject_mask[0], soft)


def test_an_own_refinement_is_used_and_frames_are_counted():
    images, true = moving_disc()
    seen, counted = [], []

    def refine(picture: np.ndarray, expected: np.ndarray) -> np.ndarray:
        seen.append(picture.shape)
        return expected

    follow(images[:5], {0: true[0]}, refine, lambda: counted.append(1))
    assert seen == [(HEIGHT, WIDTH, 3)] * 4
    assert len(counted) == 5


def test_interruption_passes_through():
    images, true = moving_disc()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(images, {0: true[0]}, each_frame=stop)


def test_an_empty_start_is_an_error():
    images, true = moving_disc()
    with pytest.raises(ValueError, match="frame 0 is empty"):
        follow(images, {0: torch.zeros_like(true[0])})
    with pytest.raises(ValueError, match="no mask to start from"):
        follow(images, {})


def test_carrying_follows_a_known_shift():
    images, true = moving_disc()
    before = cv2.cvtColor(to_bytes(images[0]), cv2.COLOR_RGB2LAB)
    shift = np.float32([[1, 0, 6], [0, 1, -4]])
    after = cv2.warpAffine(before, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    mask = true[0].numpy() > 0.5
    moved = cv2.warpAffine(mask.astype(np.uint8), shift, (WIDTH, HEIGHT)) > 0
    carried = carry(before, after, mask, telling_apart(before, mask))
    assert (carried.mask & moved).sum() / (carried.mask | moved).sum() > 0.97
    assert carried.arrived > 0.95


def test_the_separating_direction_sees_colour_where_lightness_is_equal():
    lab = np.full((40, 40, 3), 128, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    lab[mask] = (128, 170, 128)
    assert abs(telling_apart(lab, mask)[1]) > 0.99


def test_preview_marks_weak_frames_red_and_shows_all_frames_below():
    images, true = moving_disc()
    confidence = torch.ones(FRAMES)
    confidence[5] = 0.1
    plain = preview_frames(images, true)
    shown = preview_frames(images, true, confidence, (0,))
    assert plain.shape == images.shape
    assert shown.shape[1] > HEIGHT
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    inside = true[5] > 0.5
    assert shown[5, :HEIGHT][inside][:, 0].mean() > plain[5][inside][:, 0].mean() + 0.1
    strip = shown[9, HEIGHT:]
    column = round(5.5 * WIDTH / FRAMES)
    assert strip[-2, column, 0] > strip[-2, column, 1] + 0.3, "frame 5 is red"
    column = round(2.5 * WIDTH / FRAMES)
    assert strip[-2, column, 1] > strip[-2, column, 0] + 0.3, "frame 2 is green"
    assert strip[-2, 3, 2] > strip[-2, 3, 0] + 0.3, "frame 0 is blue"


def test_preview_of_a_large_picture_is_small():
    preview = preview_frames(torch.rand(1, 900, 1600, 3), torch.ones(1, 900, 1600))
    assert preview.shape == (1, 432, 768, 3)
