"""From pictures and what the user said about them to the subject's masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from .grabcut import segment_grabcut
from .images import to_bytes
from .prompts import Box, Prompt, centred_box
from .refine import feather_mask, fill_holes, grow_mask
from .track import RefineFrame, Track, follow

log = logging.getLogger("magdiff")

LARGEST_SHARE = 0.95
"""Above this share of a picture a mask says that the subject was not found."""

WAY_OUT = (
    "Put a box around the subject (box_width and box_height, or a box input), add positive_points on it, wire a mask "
    "to subject_mask, or turn on whole_frame_if_none to take the whole picture as the subject."
)


@dataclass(frozen=True)
class Method:
    """A way to segment."""

    name: str
    segment: Callable[[np.ndarray, Prompt], np.ndarray]
    """(uint8 RGB `[H, W, 3]`, prompt) -> bool `[H, W]`."""
    refine: RefineFrame | None = None
    """Better edge for a mask that was carried to a frame; None = GrabCut in a band."""
    finds_middle: bool = False
    """Whether it copes with an empty prompt; others get a box around the middle."""


GRABCUT = Method("GrabCut", segment_grabcut, finds_middle=True)


@dataclass(frozen=True)
class Request:
    """What the user said about the subject."""

    positive: tuple[tuple[float, float], ...] = ()
    negative: tuple[tuple[float, float], ...] = ()
    boxes: Mapping[int, tuple[Box, ...]] = field(default_factory=dict)
    subject_mask: torch.Tensor | None = None
    """`[1, H, W]` or `[F, H, W]`; replaces boxes, points and method for the frames that it covers."""
    corrections: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Masks `[H, W]` by frame."""
    track: bool = True
    """Follow a mask of one frame through the clip; off: it serves all frames up to the next given one."""


def _from_prompts(images: torch.Tensor, request: Request, method: Method) -> dict[int, torch.Tensor]:
    """Masks of the frames that the user pointed at."""
    height, width = images.shape[1:3]
    boxes = dict(request.boxes)
    prompts = {index: Prompt(boxes=entry) for index, entry in boxes.items()}
    if request.positive or request.negative or not boxes:
        prompts[0] = Prompt(request.positive, request.negative, boxes.get(0, ()))
    masks = {}
    for index, prompt in sorted(prompts.items()):
        if not method.finds_middle and not prompt.boxes and not prompt.positive:
            prompt = Prompt(negative=prompt.negative, boxes=(centred_box(width, height),))
        masks[index] = torch.from_numpy(method.segment(to_bytes(images[index]), prompt)).float()
    return masks


def _hold(given: Mapping[int, torch.Tensor], frames: int) -> Track:
    """Every frame takes the last mask given before it (the first one serves the frames before it too)."""
    order = sorted(given)
    masks = torch.stack([given[max((i for i in order if i <= frame), default=order[0])] for frame in range(frames)])
    return Track(masks, torch.ones(frames), tuple(order))


def _full(masks: torch.Tensor, limit: float) -> torch.Tensor:
    """`[F]` bool: which masks `[F, H, W]` cover more than this share of their frame."""
    return masks.flatten(1).mean(1) > limit


def _complain(masks: torch.Tensor, given: bool) -> None:
    """Raise when masks hold no subject, or nearly nothing but subject."""
    shares = masks.flatten(1).mean(1)
    pixels = masks.shape[1] * masks.shape[2]
    if bool((shares * pixels < 1).all()):
        raise ValueError(f"no subject was found: the mask is empty in {_frames_text(masks.shape[0])}. {WAY_OUT}")
    full = int(_full(masks, LARGEST_SHARE).sum())
    if full:
        hole = " A subject_mask that leaves a small hole on purpose is then taken as it is." if given else ""
        raise ValueError(
            f"the subject covers {100 * float(shares.max()):.1f} % of the picture (frame {int(shares.argmax())}; "
            f"{full} of {masks.shape[0]} frames are over {100 * LARGEST_SHARE:.0f} %), so it was not told apart "
            f"from the background. {WAY_OUT}{hole}"
        )


def _frames_text(frames: int) -> str:
    return "the picture" if frames == 1 else f"all {frames} frames"


def _collect(images: torch.Tensor, request: Request, method: Method, each_frame: Callable[[], None] | None) -> tuple[Track, bool]:
    """Masks of all frames before any polishing, and whether some of them were followed."""
    frames = images.shape[0]
    if request.subject_mask is None:
        given = _from_prompts(images, request, method)
    else:
        given = dict(enumerate(request.subject_mask))
    start = min(given)
    given.update(request.corrections)
    if len(given) == frames:
        return _hold(given, frames), False
    if not request.track:
        return _hold(given, frames), False
    found = {index: mask for index, mask in given.items() if index in request.corrections or (mask > 0.5).any()}
    if start not in found:
        # Nothing to follow from; whether that is an error is decided on the whole.
        return _hold(given, frames), False
    return follow(images, found, method.refine, each_frame), True


def segment_subject(
    images: torch.Tensor,
    request: Request,
    method: Method = GRABCUT,
    *,
    grow: int = 0,
    feather: float = 0,
    fill: bool = False,
    whole_frame_if_none: bool = False,
    each_frame: Callable[[], None] | None = None,
) -> tuple[Track, bool]:
    """Masks of the subject in every frame.

    Args:
        images: `[F, H, W, 3]`, float 0..1 on the CPU.
        request: what the user said.
        method: how boxes and points become masks.
        grow: radius in pixels, negative shrinks.
        feather: width of the soft edge in pixels.
        fill: fill every hole.
        whole_frame_if_none: where the subject was not found the whole picture is the subject (MagDiff supplement D). A mask
            over 95 % that the user gave for every frame stays as it is, if it leaves a pixel: it keeps all but a small subject.
        each_frame: called after each followed frame.

    Returns:
        The track and whether masks were followed from frame to frame (else its confidence says nothing).

    Raises:
        ValueError: empty mask; mask over 95 % of a frame (both unless `whole_frame_if_none`).
    """
    track, followed = _collect(images, request, method, each_frame)
    masks = track.subject_mask
    given = request.subject_mask is not None and not followed
    if whole_frame_if_none:
        shares = masks.flatten(1).mean(1)
        if bool((shares * masks[0].numel() < 1).all()):
            log.info("no subject was found: the whole frame is the subject.")
            return Track(torch.ones_like(masks), track.confidence, track.given), False
        full = _full(masks, 1 - 1 / masks[0].numel() if given else LARGEST_SHARE)
        if bool(full.any()):
            log.info("no background was found in %d frames: there the whole frame is the subject.", int(full.sum()))
            masks = torch.where(full[:, None, None], torch.ones_like(masks), masks)
    else:
        _complain(masks, given)
    if fill:
        masks = fill_holes(masks)
    masks = feather_mask(grow_mask(masks, grow), feather)
    if float(masks.flatten(1).sum(1).max()) < 1:
        raise ValueError(f"grow is {grow}: shrinking by {-grow} pixels left nothing of the subject; use a smaller number.")
    return Track(masks, track.confidence, track.given), followed
