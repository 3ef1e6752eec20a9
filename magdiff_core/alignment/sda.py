"""Subject-driven alignment: the subject on black (MagDiff section 3.1).

The model never sees the whole reference picture, only the subject cut out of it. Generation gives one such picture
(frame 0) and black frames; editing gives every frame its own cut-out (supplement D: the first image with its mask is
replaced by the whole video with a mask for each frame). Black is pixel value 0, which is -1 for the autoencoder.
"""

from __future__ import annotations

import torch


def subject_on_black(images: torch.Tensor, subject_mask: torch.Tensor) -> torch.Tensor:
    """Multiply pictures by their masks.

    Args:
        images: `[F, H, W, 3]`, values in 0..1.
        subject_mask: `[F, H, W]` or `[1, H, W]` (serves all frames), 1 = subject. Fractions are kept.

    Returns:
        `[F, H, W, 3]` in the dtype of `images`.

    Raises:
        ValueError: when counts or sizes do not match.
    """
    if images.ndim != 4 or subject_mask.ndim != 3:
        raise ValueError(
            f"images must be [F, H, W, 3] and subject_mask [F, H, W], got {list(images.shape)} and {list(subject_mask.shape)}."
        )
    if subject_mask.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"subject_mask has {subject_mask.shape[0]} frames, images {images.shape[0]}: give one mask or {images.shape[0]}."
        )
    if subject_mask.shape[1:] != images.shape[1:3]:
        raise ValueError(
            f"subject_mask is {subject_mask.shape[2]}x{subject_mask.shape[1]}, images "
            f"{images.shape[2]}x{images.shape[1]}: resize one of them."
        )
    return images * subject_mask.to(images).unsqueeze(-1)


def subject_clip(subject: torch.Tensor, frames: int) -> torch.Tensor:
    """Clip for generation: the subject fills frame 0, all other frames are black.

    Args:
        subject: `[1, H, W, 3]`, subject on black.
        frames: F, at least 1.

    Returns:
        `[F, H, W, 3]`.

    Raises:
        ValueError: when `subject` holds several frames or `frames` is below 1.
    """
    if subject.ndim != 4 or subject.shape[0] != 1:
        raise ValueError(f"generation takes one subject image [1, H, W, 3], got {list(subject.shape)}.")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}.")
    clip = subject.new_zeros((frames, *subject.shape[1:]))
    clip[0] = subject[0]
    return clip
