"""What the subject looks like, to tell it from others and to find it again."""

from __future__ import annotations

import numpy as np

from .flow import telling_apart
from .images import import_cv2

FOUND = 0.75
"""Correlation from which on a place in the picture counts as the subject."""


class Look:
    """Colours of the subject in a frame where its mask is known."""

    def __init__(self, lab: np.ndarray, mask: np.ndarray) -> None:
        self.lab, self.mask = lab, mask
        self.histogram = self._histogram(lab, mask)
        self.direction = telling_apart(lab, mask)
        self.area = int(mask.sum())

    @staticmethod
    def _histogram(lab: np.ndarray, mask: np.ndarray) -> np.ndarray:
        cv2 = import_cv2()
        counts = cv2.calcHist([lab], [0, 1, 2], mask.astype(np.uint8), [8, 16, 16], [0, 256] * 3)
        for axis in range(3):
            # Neighbouring bins share: a change of light by one bin is no other subject.
            shape = [1, 1, 1]
            shape[axis] = 3
            padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)])
            parts = [np.take(padded, range(start, start + counts.shape[axis]), axis) for start in range(3)]
            counts = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
        return counts / max(counts.sum(), 1e-6)

    def foreign(self, lab: np.ndarray, expected: np.ndarray, times: float) -> np.ndarray:
        """Pixels whose colour is more than `times` as common off the subject as on it; bool `[h, w]`.

        Args:
            lab: uint8 Lab `[h, w, 3]`.
            expected: bool `[h, w]`, where the subject should be.
            times: 1 or more.
        """
        bins = (lab[..., 0] >> 5, lab[..., 1] >> 4, lab[..., 2] >> 4)
        return times * self.histogram[bins] < self._histogram(lab, ~expected)[bins]

    def likeness(self, lab: np.ndarray, mask: np.ndarray) -> float:
        """Bhattacharyya coefficient of the two colour distributions, 0..1."""
        if not mask.any():
            return 0.0
        return float(np.sqrt(self.histogram * self._histogram(lab, mask)).sum())


def find_again(
    lab: np.ndarray, view: np.ndarray, view_mask: np.ndarray, scales: tuple[float, ...] = (1.0, 0.8, 1.25)
) -> np.ndarray:
    """Look for a lost subject in the whole picture by its last good view (masked normalised correlation).

    Args:
        lab: uint8 Lab `[h, w, 3]`.
        view: uint8 Lab `[h, w, 3]` of a frame that shows the subject.
        view_mask: bool `[h, w]`, the subject in it.
        scales: sizes to try, relative to the view.

    Returns:
        bool `[h, w]`, the subject's mask at the best place; empty when nothing correlates at `FOUND` or more.
    """
    cv2 = import_cv2()
    found = np.zeros(lab.shape[:2], bool)
    rows, columns = np.nonzero(view_mask)
    if not len(rows):
        return found
    y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    pattern, shape = view[y0:y1, x0:x1], view_mask[y0:y1, x0:x1].astype(np.uint8)
    best = FOUND
    for scale in scales:
        size = max(4, round(shape.shape[1] * scale)), max(4, round(shape.shape[0] * scale))
        if size[0] > lab.shape[1] or size[1] > lab.shape[0]:
            continue
        template = cv2.resize(pattern, size, interpolation=cv2.INTER_AREA)
        outline = cv2.resize(shape, size, interpolation=cv2.INTER_NEAREST)
        weights = np.repeat(outline[..., None], 3, axis=2)
        match = cv2.matchTemplate(lab, template, cv2.TM_CCOEFF_NORMED, mask=weights)
        match[~np.isfinite(match) | (match > 1.001)] = -1  # flat places have no correlation
        _, value, _, (x, y) = cv2.minMaxLoc(match)
        if value > best:
            best = value
            found[:] = False
            found[y : y + size[1], x : x + size[0]] = outline > 0
    return found
