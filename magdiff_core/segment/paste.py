"""Paste the kept region of the source back into an edited clip."""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F

from ..images import clean_images, fit_mask
from ..metrics.region import region_psnr
from ..motion.resolution import same_but_for_rounding
from .refine import seam

log = logging.getLogger("magdiff")


def _match_source(edited: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Edited frames in the size of the source, and a sentence for the user where that is another one."""
    height, width = source.shape[1:3]
    if edited.shape[1:3] == (height, width):
        return edited, ""
    was = f"{edited.shape[2]}x{edited.shape[1]}"
    if not same_but_for_rounding((edited.shape[2], edited.shape[1]), (width, height)):
        raise ValueError(
            f"edited_frames are {was}, source_frames {width}x{height}, another shape: give the source frames as they "
            "went into the edit (crop or resize them the same way)."
        )
    note = f"edited_frames are {was}, resized to the source's {width}x{height}."
    log.info(note)
    moved = F.interpolate(edited.movedim(-1, 1), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return moved.movedim(1, -1).clamp(0, 1), note


def _choose_mask(
    keep_mask: torch.Tensor | None, edit_mask: torch.Tensor | None, frames: int, height: int, width: int
) -> torch.Tensor:
    if (keep_mask is None) == (edit_mask is None):
        both = "neither is" if keep_mask is None else "both are"
        raise ValueError(f"wire exactly one of keep_mask (1 = kept) and edit_mask (1 = may change): {both} wired.")
    if keep_mask is not None:
        return fit_mask(keep_mask, "keep_mask", frames, height, width)
    return 1 - fit_mask(edit_mask, "edit_mask", frames, height, width)


def paste_kept_region(
    edited_frames: torch.Tensor,
    source_frames: torch.Tensor,
    keep_mask: torch.Tensor | None,
    edit_mask: torch.Tensor | None,
    feather: int,
) -> tuple[torch.Tensor, float, str]:
    """Put the kept region back.

    Where the mask says 1 = kept the result equals the source exactly; within `feather` pixels outside it falls from
    source to edit; a fraction in the mask keeps at least that share of the source.

    Args:
        edited_frames: `[F, H, W, C]`, C 1, 3 or 4.
        source_frames: `[F, H, W, C]` or `[1, H, W, C]`.
        keep_mask: `[F, h, w]` or `[1, h, w]`, 1 = kept; or None.
        edit_mask: the same with 1 = may change; exactly one of the two.
        feather: width of the seam in pixels, at least 0.

    Returns:
        frames `[F, H, W, 3]` in the source's size, PSNR in dB of the kept region before pasting, a report.

    Raises:
        ValueError: none or both masks, counts or shapes that differ, an empty kept region, NaN.
    """
    edited, source = clean_images(edited_frames, "edited_frames"), clean_images(source_frames, "source_frames")
    frames = edited.shape[0]
    if source.shape[0] not in (1, frames):
        raise ValueError(
            f"edited_frames has {frames} frames, source_frames {source.shape[0]}: give the source frames of this edit, "
            "or one picture."
        )
    edited, note = _match_source(edited, source)
    source = source.expand(frames, -1, -1, -1)
    keep = _choose_mask(keep_mask, edit_mask, frames, *source.shape[1:3])
    if float(keep.sum()) < 1:
        raise ValueError("the kept region is empty: check whether keep_mask and edit_mask are swapped.")
    psnr, by_frame = region_psnr(edited, source, keep)
    pasted = torch.empty_like(edited)
    weight = seam(keep, feather)
    for index in range(frames):
        share = weight[min(index, len(weight) - 1)].unsqueeze(-1)
        # Not left to rounding: where the weight is 1 the source's own numbers stand.
        mixed = edited[index] + (source[index] - edited[index]) * share
        pasted[index] = torch.where(share >= 1, source[index], mixed)
    report = _report(psnr, by_frame, float(keep.mean()), feather)
    return pasted, psnr, f"{report} {note}".rstrip()


def _report(psnr: float, by_frame: list[float], share: float, feather: int) -> str:
    text = f"Kept region: {100 * share:.1f} % of the picture, PSNR before pasting {psnr:.1f} dB"
    known = [(value, index) for index, value in enumerate(by_frame) if not math.isnan(value)]
    if len(by_frame) > 1:
        worst, index = min(known)
        text += f" (lowest {worst:.1f} dB in frame {index} of {len(by_frame)})"
    return f"{text}. Pasted back exactly, seam of {feather} px outside it."
