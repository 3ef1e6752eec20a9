"""Is it the subject that was given? Masked template search over place and size, without a network.

Two questions, two measures. *Fidelity*: the RMSE inside the subject's outline at the place and size where it fits best.
*Identity*: which of several subjects, laid over the clip's background, explains the frames best. The second counts what a
subject explains beyond the background, so that a small or background-coloured candidate gains nothing by hiding in it.

Subjects are compared upright, as the clips show them: they move and change size, but do not turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (0.58, 0.67, 0.76, 0.87, 1.0, 1.15, 1.32, 1.52, 1.7)
"""Sizes relative to the reference picture; a clip of 8 frames reaches 0.59 (shrinks) and 1.69 (grows)."""
LEAST_INSIDE = 0.7
"""Share of a template that must lie inside the frame."""
LEAST_PIXELS = 40.0
"""A template is shrunk by a pixel, so that its antialiased edge does not count, only where this many remain."""
MOST_ERROR = 0.5
"""Squared colour distance from which on a pixel off the background explains no more: broken backgrounds must not decide."""


@dataclass(frozen=True)
class Template:
    """A subject on one picture: colours `[h, w, 3]` in 0..1 and its mask `[h, w]` in 0..1."""

    picture: Tensor
    subject_mask: Tensor


def _resized(template: Template, scale: float) -> tuple[Tensor, Tensor] | None:
    """Colours `[3, H, W]` and weights `[H, W]` of a template's bounding box at another size; None where nothing is left."""
    rows, columns = (template.subject_mask > 0.5).any(1).nonzero()[:, 0], (template.subject_mask > 0.5).any(0).nonzero()[:, 0]
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    solid = (template.subject_mask[box] > 0.5).float()[None, None]
    # Pixels outside the subject take the colours of the nearest ones inside, or they would bleed in when resized.
    colours = _spread(template.picture[box].movedim(-1, 0)[None], solid)
    size = [max(3, round(side * scale)) for side in solid.shape[-2:]]
    resize = lambda x: F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)  # noqa: E731
    colours, weight = resize(colours)[0], (resize(solid)[0, 0] > 0.5).float()
    eroded = -F.max_pool2d(-F.pad(weight, (1, 1, 1, 1))[None], 3, 1)[0]
    weight = eroded if eroded.sum() >= LEAST_PIXELS else weight
    return (colours, weight) if weight.sum() >= 4 else None


def _spread(colours: Tensor, solid: Tensor, rounds: int = 4) -> Tensor:
    total, weight = colours * solid, solid
    for _ in range(rounds):
        near, amount = F.avg_pool2d(total, 3, 1, 1), F.avg_pool2d(weight, 3, 1, 1)
        fresh = (weight == 0) & (amount > 0)
        total = torch.where(fresh, near / amount.clamp_min(1e-6), total)
        weight = torch.where(fresh, torch.ones_like(weight), weight)
    return total


class TemplateSearch:
    """Finds templates in the frames of one clip.

    All sums over a template are correlations, so they are taken in the frequency domain for all frames at once.

    Args:
        frames: `[F, h, w, 3]` in 0..1.
        background: `[F, h, w, 3]` in 0..1, what the clip would show without its subject.
    """

    def __init__(self, frames: Tensor, background: Tensor) -> None:
        self.height, self.width = frames.shape[1:3]
        # Half a frame more on each axis: a template may stick out, but must not come in again on the other side.
        self.size = (self.height * 3 // 2, self.width * 3 // 2)
        x = frames.movedim(-1, 1)
        self.energy = self._spectrum(x.square().sum(1))
        self.off_background = self._spectrum((frames - background).square().sum(-1).clamp_max(MOST_ERROR))
        self.colours = self._spectrum(x)
        self.ones = self._spectrum(torch.ones(self.height, self.width))

    def _spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, self.size)

    def _correlate(self, spectrum: Tensor, height: int, width: int) -> Tensor:
        """Sums over the template for every place whose centre lies in the frame: `[..., Y, X]`."""
        sums = torch.fft.irfft2(spectrum, self.size)
        sums = sums.roll((height // 2, width // 2), (-2, -1))
        return sums[..., : self.height, : self.width]

    def _sums(self, template: Template, scale: float) -> tuple[Tensor, Tensor, Tensor] | None:
        """Squared error against the template `[F, Y, X]`, what the background leaves there `[F, Y, X]`, pixels `[Y, X]`."""
        resized = _resized(template, scale)
        if resized is None:
            return None
        colours, weight = resized
        height, width = weight.shape
        if height // 2 > self.size[0] - self.height or width // 2 > self.size[1] - self.width:
            return None
        mask = self._spectrum(weight).conj()
        weighted = self._spectrum(colours * weight).conj()
        square = self._spectrum(colours.square().sum(0) * weight).conj()
        cross = (self.colours * weighted).sum(1)
        count = self._correlate(self.ones * mask, height, width)
        inside = count >= LEAST_INSIDE * weight.sum()
        error = self._correlate(self.energy * mask - 2 * cross + self.ones * square, height, width)
        left = self._correlate(self.off_background * mask, height, width)
        return error.masked_fill(~inside, float("inf")), left, count.clamp_min(1)

    def rmse(self, template: Template, scales: Sequence[float] = SCALES) -> Tensor:
        """Smallest RMSE of the template in each frame, `[F]`, in 0..1 a channel, over all places and sizes."""
        best = None
        for scale in scales:
            sums = self._sums(template, scale)
            if sums is None:
                continue
            error, _, count = sums
            value = (error / (3 * count)).clamp_min(0).flatten(1).amin(1)
            best = value if best is None else torch.minimum(best, value)
        if best is None:
            raise ValueError("the template has no size at which it fits into the frames")
        return best.sqrt()

    def explained(self, template: Template, scales: Sequence[float] = SCALES) -> Tensor:
        """Squared error that the template saves over the bare background in each frame, `[F]`, at its best place and size."""
        best = torch.full((len(self.colours),), -float("inf"))
        for scale in scales:
            sums = self._sums(template, scale)
            if sums is not None:
                error, left, _ = sums
                best = torch.maximum(best, (left - error).flatten(1).amax(1))
        return best


def nearest(search: TemplateSearch, candidates: Sequence[Template], scales: Sequence[float] = SCALES) -> int:
    """Index of the candidate that explains the clip best (the sum over its frames)."""
    return int(torch.stack([search.explained(candidate, scales).sum() for candidate in candidates]).argmax())
