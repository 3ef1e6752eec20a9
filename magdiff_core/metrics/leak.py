"""How much of a reference picture's background shows in a clip that was asked for another one."""

from __future__ import annotations

from torch import Tensor

from .background import outside


def mean_background(frames: Tensor, subject_mask: Tensor) -> Tensor:
    """Mean colour `[3]` of frames `[F, h, w, 3]` outside the subject and a margin around it; of all pixels if that leaves none.

    `subject_mask`: `[F, h, w]`, bool or 0..1.
    """
    weight = outside(subject_mask)[..., None]
    if not weight.any():
        weight = weight + 1
    return (frames * weight).sum((0, 1, 2)) / weight.sum()


def background_pull(mean: Tensor, wanted: Tensor, reference: Tensor) -> float:
    """Where a background's mean colour lies on the way from the wanted one, 0, to the reference picture's, 1; all `[3]`.

    The projection of (mean - wanted) onto (reference - wanted), below 0 and above 1 for colours beyond the two. It sees a
    background that went half of the way and may still have the wanted colour's name.

    Raises:
        ValueError: wanted and reference are equal.
    """
    way = reference - wanted
    if not way.any():
        raise ValueError(f"wanted and reference are both {wanted.tolist()}: no direction leads from one to the other")
    return float((mean - wanted) @ way / (way @ way))
