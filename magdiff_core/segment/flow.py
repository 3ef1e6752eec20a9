"""Carrying a mask from one frame to the next along dense optical flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .images import import_cv2


@dataclass(frozen=True)
class Carried:
    """A mask brought to another frame."""

    mask: np.ndarray
    """bool `[h, w]` in the new frame."""
    trusted: np.ndarray
    """bool `[h, w]` in the new frame: flow forth and back agree and the pixel looks as before."""
    arrived: float
    """Share of the old mask's pixels, 0..1, that were found again in the new frame."""
    motion: np.ndarray | None
    """Similarity transform `[2, 3]` of the subject, old to new pixels; None when too little of it was found again."""


def _sample(values: np.ndarray, columns: np.ndarray, rows: np.ndarray, outside: float) -> np.ndarray:
    cv2 = import_cv2()
    return cv2.remap(values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 4)


def _agreement(there: np.ndarray, back: np.ndarray, look: np.ndarray, look_there: np.ndarray) -> np.ndarray:
    """Pixels whose flow returns to where it came from (Sundaram et al. 2010, eq. 5) and whose colour was kept."""
    height, width = there.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    columns, rows = columns + there[..., 0], rows + there[..., 1]
    returned = _sample(back, columns, rows, 1e3)
    error = ((there + returned) ** 2).sum(-1)
    length = (there**2).sum(-1) + (returned**2).sum(-1)
    seen = _sample(look_there, columns, rows, 0.0)
    difference = np.abs(look.astype(np.float32) - seen.astype(np.float32)).mean(-1)
    return (error < 0.02 * length + 1.0) & (difference < 18.0)


def telling_apart(lab: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Direction in Lab that separates the subject from its surroundings best (Fisher), unit length, float32 `[3]`.

    Flow is computed on one channel. Lightness alone loses a subject that is as bright as the ground behind it.
    """
    cv2 = import_cv2()
    reach = max(5, round(0.05 * max(mask.shape)))
    ring = (cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)) > 0) & ~mask
    if mask.sum() < 9 or ring.sum() < 9:
        return np.array([1, 0, 0], np.float32)
    subject, ground = lab[mask].astype(np.float64), lab[ring].astype(np.float64)
    scatter = np.cov(subject.T) + np.cov(ground.T) + np.eye(3)
    direction = np.linalg.solve(scatter, subject.mean(0) - ground.mean(0))
    return (direction / max(float(np.linalg.norm(direction)), 1e-9)).astype(np.float32)


def _channel(lab: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """One uint8 channel: lightness (texture) and the separating colour, `[h, w]`."""
    weights = np.array([0.5, 0, 0], np.float32) + direction * (1 if direction[0] >= 0 else -1)
    # The chroma channels of 8-bit Lab are centred at 128 and seldom leave +-64.
    value = (lab.astype(np.float32) - 128) @ weights
    return np.clip(128 + value, 0, 255).astype(np.uint8)


def carry(lab_before: np.ndarray, lab_after: np.ndarray, mask: np.ndarray, direction: np.ndarray) -> Carried:
    """Carry a mask from one frame to the next (DIS flow, Kroeger et al. 2016).

    Args:
        lab_before: uint8 Lab `[h, w, 3]` of the frame that the mask belongs to.
        lab_after: uint8 Lab `[h, w, 3]` of the frame to reach.
        mask: bool `[h, w]`.
        direction: `[3]`, see `telling_apart`.
    """
    cv2 = import_cv2()
    before, after = _channel(lab_before, direction), _channel(lab_after, direction)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forth, back = flow.calc(before, after, None), flow.calc(after, before, None)
    height, width = mask.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    soft = cv2.GaussianBlur(lab_before, (0, 0), 1.0), cv2.GaussianBlur(lab_after, (0, 0), 1.0)
    source = columns + back[..., 0], rows + back[..., 1]
    moved = _sample(mask.astype(np.float32), *source, 0.0) > 0.5
    trusted = _agreement(back, forth, soft[1], soft[0])
    kept = _agreement(forth, back, soft[0], soft[1])
    arrived = float(kept[mask].mean()) if mask.any() else 0.0
    return Carried(moved, trusted, arrived, _motion(forth, kept & mask))


def _motion(flow: np.ndarray, where: np.ndarray, samples: int = 600) -> np.ndarray | None:
    """Rotation, scale and shift that fit the flow of the pixels `where` best (RANSAC)."""
    cv2 = import_cv2()
    rows, columns = np.nonzero(where)
    if len(rows) < 30:
        return None
    step = max(1, len(rows) // samples)
    rows, columns = rows[::step], columns[::step]
    old = np.stack([columns, rows], -1).astype(np.float32)
    cv2.setRNGSeed(0)
    motion, _ = cv2.estimateAffinePartial2D(old, old + flow[rows, columns], ransacReprojThreshold=2.0)
    return motion
