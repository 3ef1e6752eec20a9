"""The mask follows the subject through a clip, and says where it may have lost it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .flow import Carried, carry
from .grabcut import Evidence, largest_parts, refine_edge, upsample_edge
from .images import import_cv2, to_bytes, working_size
from .look import Look, find_again

FOLLOW_SIDE = 480
"""Longest side in pixels at which flow is computed and the mask is followed."""

WEAK = 0.5
"""Below this confidence a frame is shown as weak."""

FOREIGN = 4.0
"""A colour that is this many times as common off the subject as on it is not the subject's."""

LOST = 0.03
"""Share of the subject's area below which it counts as gone."""

PATIENCE = 40
"""Frames for which the outline of a hidden subject is moved on."""

RefineFrame = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(uint8 RGB `[H, W, 3]`, expected mask bool `[H, W]`) -> better mask bool `[H, W]`."""


@dataclass(frozen=True)
class Track:
    """Masks of a clip."""

    subject_mask: torch.Tensor
    """`[F, H, W]`, float 0..1."""
    confidence: torch.Tensor
    """`[F]`, float 0..1; 1 for masks that were given."""
    given: tuple[int, ...]
    """Frames whose mask was given, not followed."""

    @property
    def weak(self) -> tuple[int, ...]:
        """Frames that need a look."""
        return tuple(int(i) for i in torch.nonzero(self.confidence < WEAK).flatten())


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


class _Follower:
    """One direction of time: knows the last mask and walks to the next frame."""

    def __init__(self, images: torch.Tensor, refine: RefineFrame | None) -> None:
        self.images, self.refine = images, refine
        self.size = working_size(images.shape[1], images.shape[2], FOLLOW_SIDE)
        self.band = max(3, round(0.012 * max(self.size)))

    def _lab(self, picture: np.ndarray) -> np.ndarray:
        cv2 = import_cv2()
        if picture.shape[:2] != self.size:
            picture = cv2.resize(picture, self.size[::-1], interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)

    def _shrink(self, mask: np.ndarray) -> np.ndarray:
        cv2 = import_cv2()
        if mask.shape == self.size:
            return mask > 0.5
        return cv2.resize(mask.astype(np.float32), self.size[::-1], interpolation=cv2.INTER_AREA) > 0.5

    def start(self, index: int, mask: torch.Tensor) -> None:
        """Begin anew from a mask `[H, W]` that was given for frame `index`."""
        self.lab = self._lab(to_bytes(self.images[index]))
        self.mask = self._shrink(mask.numpy())
        self.look = Look(self.lab, self.mask)
        self.view = (self.lab, self.mask)
        self.whole, self.motion, self.patience = self.mask, np.eye(2, 3), PATIENCE
        self.confidence = 1.0

    def _better(self, picture: np.ndarray, lab: np.ndarray, expected: np.ndarray, evidence: Evidence | None = None) -> np.ndarray:
        """Give an expected mask the edge of this frame."""
        if self.refine is None:
            better = largest_parts(refine_edge(lab, expected, self.band, evidence=evidence))
        else:
            better = self._shrink(self.refine(picture, upsample_edge(expected, picture)))
        # A cut that runs away (the subject and the ground look alike) is worse than no cut.
        return better if _overlap(better, expected) > 0.5 else expected

    def _evidence(self, lab: np.ndarray, mask: np.ndarray, carried: Carried) -> Evidence:
        return Evidence(
            trusted=carried.trusted & carried.mask,
            foreign=self.look.foreign(lab, mask, FOREIGN),
            outside=~mask & (carried.trusted | self.look.foreign(lab, mask, 1)),
        )

    def _move_on(self, motion: np.ndarray | None) -> None:
        """Move on the subject's whole outline, of which only a part may be in sight."""
        cv2 = import_cv2()
        if motion is not None:
            self.motion = motion
        moved = cv2.warpAffine(self.whole.astype(np.float32), self.motion, self.size[::-1], flags=cv2.INTER_LINEAR)
        self.whole = moved > 0.5

    def step(self, index: int) -> tuple[np.ndarray, float]:
        """Walk to frame `index`, a neighbour of the last one: mask bool `[H, W]` and confidence 0..1."""
        if not self.look.area:
            # Whoever gave an empty mask said that the subject is gone from here on.
            return np.zeros(self.images.shape[1:3], bool), 1.0
        picture = to_bytes(self.images[index])
        lab = self._lab(picture)
        carried = carry(self.lab, lab, self.mask, self.look.direction)
        self._move_on(carried.motion)
        mask, score, ceiling = carried.mask, 0.0, self.confidence + 0.1
        if 0 < self.patience < PATIENCE:
            # What came out from behind something: inside the whole outline, in colours of the subject.
            mask = mask | (self.whole & ~self.look.foreign(lab, self.whole | mask, FOREIGN))
        if mask.any():
            mask = self._better(picture, lab, mask, self._evidence(lab, mask, carried))
            score = min(
                _ramp(carried.arrived, 0.2, 0.8),
                self._likeness(lab, mask),
                _ramp(_overlap(mask, carried.mask), 0.4, 0.8),
                _ramp(int(mask.sum()) / max(1, int((mask | self.whole).sum())), 0.3, 0.9),
            )
        if int(mask.sum()) < 0.5 * max(int(self.whole.sum()), LOST * self.look.area):
            again = find_again(lab, *self.view)
            if again.any():
                again = self._better(picture, lab, again)
            if again.sum() > mask.sum() and self._likeness(lab, again) > max(score, WEAK):
                mask, score, ceiling = again, self._likeness(lab, again), WEAK + 0.1
                self.whole = again
        # A remnant that nothing speaks for is what the flow dragged along at the rim of the picture.
        if int(mask.sum()) < (5 * LOST if score == 0 else LOST) * self.look.area:
            mask, score = np.zeros_like(mask), 0.0
        # A subject that was lost for a moment may come back as a part of itself: trust returns slowly.
        self.confidence = min(score, ceiling)
        if self.confidence > 0.9:
            self.view = (lab, mask)
        in_sight = int(mask.sum()) >= 0.9 * int(self.whole.sum()) and mask.any()
        self.patience = PATIENCE if in_sight else max(0, self.patience - 1)
        if in_sight or not self.patience:
            self.whole = mask
        self.lab, self.mask = lab, mask
        return upsample_edge(mask, picture), self.confidence

    def _likeness(self, lab: np.ndarray, mask: np.ndarray) -> float:
        return _ramp(self.look.likeness(lab, mask), 0.5, 0.85)


def follow(
    images: torch.Tensor,
    given: Mapping[int, torch.Tensor],
    refine: RefineFrame | None = None,
    each_frame: Callable[[], None] | None = None,
) -> Track:
    """Follow a subject through a clip.

    From the first given mask the subject is followed to both ends of the clip; each later given mask takes over from
    its frame on. Between two frames the mask is carried along optical flow, then its edge is cut anew. A part that is
    hidden keeps being expected where the visible rest's motion puts it; a subject that is gone is looked for in the
    whole picture by its last good view.

    The confidence is the worst of: the share of the subject that flow found again, the likeness of its colours to the
    last given mask, what the new cut left of the carried mask, the share of the whole outline that is in sight. After a
    weak frame it recovers by at most 0.1 a frame.

    Args:
        images: `[F, H, W, 3]`, float 0..1 on the CPU.
        given: masks `[H, W]` by frame, at least one; kept as they are.
        refine: gives a carried mask a better edge; GrabCut in a band around the edge when None.
        each_frame: called after each frame (progress, interruption).

    Raises:
        ValueError: when no mask is given or the first one is empty.
    """
    if not given:
        raise ValueError("no mask to start from: give a mask, a box or points for one frame.")
    frames = images.shape[0]
    first = min(given)
    if not (given[first] > 0.5).any():
        raise ValueError(f"the mask of frame {first} is empty, there is nothing to follow from there.")
    masks = torch.zeros(images.shape[:3])
    confidence = torch.ones(frames)
    for order in (range(first, frames), range(first, -1, -1)):
        walker = _Follower(images, refine)
        for index in order:
            if index in given:
                masks[index] = given[index]
                walker.start(index, given[index])
                if index == first and order.step < 0:
                    continue
            else:
                mask, trust = walker.step(index)
                masks[index] = torch.from_numpy(mask)
                confidence[index] = trust
            if each_frame is not None:
                each_frame()
    return Track(masks, confidence, tuple(sorted(given)))
