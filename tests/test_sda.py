"""Subject on black: MagDiff section 3.1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magdiff_core.alignment.sda import subject_clip, subject_on_black


def test_subject_is_the_picture_times_the_mask_with_fractions_kept():
    generator = np.random.default_rng(0)
    images = generator.random((3, 5, 7, 3)).astype(np.float32)
    mask = generator.random((3, 5, 7)).astype(np.float32)
    expected = np.stack([images[..., channel] * mask for channel in range(3)], axis=-1)
    got = subject_on_black(torch.from_numpy(images), torch.from_numpy(mask))
    np.testing.assert_array_equal(got.numpy(), expected)


def test_one_mask_serves_all_frames():
    images = torch.rand(4, 6, 6, 3)
    mask = torch.rand(1, 6, 6)
    torch.testing.assert_close(subject_on_black(images, mask), subject_on_black(images, mask.expand(4, -1, -1)), rtol=0, atol=0)


def test_outside_of_the_mask_is_black():
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 2] = 1
    subject = subject_on_black(torch.ones(2, 4, 4, 3), mask)
    assert subject.sum() == 2 * 3
    assert torch.equal(subject[:, 1, 2], torch.ones(2, 3))


def test_half_precision_pictures_stay_half():
    assert subject_on_black(torch.rand(1, 4, 4, 3).half(), torch.ones(1, 4, 4)).dtype == torch.float16


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [(torch.ones(3, 4, 4), ("3 frames", "images 5")), (torch.ones(1, 4, 6), ("6x4", "4x4"))],
)
def test_wrong_counts_and_sizes_name_both_numbers(mask, numbers):
    with pytest.raises(ValueError) as caught:
        subject_on_black(torch.rand(5, 4, 4, 3), mask)
    assert all(number in str(caught.value) for number in numbers)


def test_generation_fills_frame_0_and_leaves_the_others_black():
    subject = torch.rand(1, 4, 4, 3)
    clip = subject_clip(subject, 8)
    assert clip.shape == (8, 4, 4, 3)
    assert torch.equal(clip[0], subject[0])
    assert clip[1:].abs().max() == 0


def test_generation_takes_one_subject():
    with pytest.raises(ValueError, match="one subject image"):
        subject_clip(torch.rand(2, 4, 4, 3), 8)
    with pytest.raises(ValueError, match="at least 1"):
        subject_clip(torch.rand(1, 4, 4, 3), 0)
