"""What belongs to one clip that is measured, checked and brought to one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import clean_images, fit_mask
from ..motion.resolution import same_but_for_rounding


@dataclass(frozen=True)
class MeasuredClip:
    """A clip and what it is compared with; all but the frames may be missing.

    frames: `[F, H, W, 3]` in 0..1. prompt: "" for none. source_frames: `[F or 1, H', W', 3]`, before the edit. edit_mask: 1 =
    may change, keep_mask: 1 = kept, `[F or 1, h, w]`, at most one of them. subject: pictures of the given subject
    `[n, h, w, 3]`. subject_mask: 1 = the subject that was made, `[F or 1, h, w]`.
    """

    frames: Tensor
    prompt: str = ""
    source_frames: Tensor | None = None
    edit_mask: Tensor | None = None
    keep_mask: Tensor | None = None
    subject: Tensor | None = None
    subject_mask: Tensor | None = None


def check_clip(clip: MeasuredClip) -> MeasuredClip:
    """The same clip with masks and source in the size of the frames, all float on the CPU.

    A source of another size is brought to that of the frames (bicubic), as models round sizes.

    Raises:
        ValueError: shapes, counts or values that do not fit, masks without source, both masks, a subject that is all black.
    """
    frames = clean_images(clip.frames, "frames")
    count, height, width = frames.shape[:3]
    source = _fit_source(clip.source_frames, count, height, width)
    masks = {"edit_mask": clip.edit_mask, "keep_mask": clip.keep_mask}
    if all(mask is not None for mask in masks.values()):
        raise ValueError("edit_mask and keep_mask are both wired, which say the same in opposite ways: wire one of them")
    for name, mask in masks.items():
        if mask is None:
            continue
        if source is None:
            raise ValueError(f"{name} is wired but source_frames is not: the PSNR compares with the frames before the edit")
        masks[name] = fit_mask(mask, name, count, height, width)
    subject, subject_mask = clip.subject, clip.subject_mask
    if subject is not None:
        subject = clean_images(subject, "subject")
        # Subject Segment gives black frames where a frame has no subject.
        subject = subject[subject.amax((1, 2, 3)) > 0]
        if len(subject) == 0:
            raise ValueError("subject is black all over: wire the picture of the subject that was given")
    if subject_mask is not None:
        if subject is None:
            raise ValueError("subject_mask is wired but subject is not: it marks what is compared with the given subject")
        subject_mask = fit_mask(subject_mask, "subject_mask", count, height, width)
    return replace(clip, frames=frames, source_frames=source, subject=subject, subject_mask=subject_mask, **masks)


def _fit_source(source: Tensor | None, count: int, height: int, width: int) -> Tensor | None:
    if source is None:
        return None
    source = clean_images(source, "source_frames")
    if source.shape[0] not in (1, count):
        raise ValueError(
            f"frames has {count} frames, source_frames {source.shape[0]}: give the frames that went into the edit, or one picture"
        )
    if source.shape[1:3] != (height, width):
        if not same_but_for_rounding((width, height), (source.shape[2], source.shape[1])):
            raise ValueError(
                f"frames are {width}x{height}, source_frames {source.shape[2]}x{source.shape[1]}, another shape: crop the source "
                "the way it was cropped before the edit"
            )
        moved = F.interpolate(source.movedim(-1, 1), (height, width), mode="bicubic", antialias=True, align_corners=False)
        source = moved.movedim(1, -1).clamp(0, 1)
    return source.expand(count, -1, -1, -1)


def kept_region(clip: MeasuredClip) -> Tensor:
    """Weights `[1 or F, H, W]` of what an edit had to leave alone: 1 everywhere where a checked clip has no mask.

    Raises ValueError when nothing had to be left alone.
    """
    if clip.keep_mask is not None:
        weights = clip.keep_mask
    elif clip.edit_mask is not None:
        weights = 1 - clip.edit_mask
    else:
        weights = clip.frames.new_ones(1, *clip.frames.shape[1:3])
    if float(weights.sum()) < 1:
        raise ValueError("nothing lies outside the edit region: check whether edit_mask and keep_mask are swapped")
    return weights


def subject_pictures(clip: MeasuredClip) -> tuple[Tensor, Tensor]:
    """Frames with all but the subject black, where a checked clip has a subject_mask, and which of them `[F]` hold it."""
    if clip.subject_mask is None:
        return clip.frames, torch.ones(len(clip.frames), dtype=torch.bool)
    mask = clip.subject_mask.expand(len(clip.frames), -1, -1)
    return clip.frames * mask[..., None], mask.sum((1, 2)) >= 1
