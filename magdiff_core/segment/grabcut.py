"""Subject masks by GrabCut (Rother et al. 2004, OpenCV's implementation)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .images import import_cv2, working_size
from .prompts import Box, Point, Prompt, centred_box

COARSE_SIDE = 240
"""Longest side in pixels of the first cut. GrabCut's smoothness weighs more in a small picture: the subject comes out
in one piece instead of in patches of equal colour."""

ISLAND = 0.1
"""A separate part of less than this share of the largest one is something else, unless a point lies on it."""

FINE_SIDE = 640
"""Longest side at which the edge is cut again; larger pictures get theirs from a guided filter."""


def _discs(shape: tuple[int, int], points: tuple[Point, ...], radius: int) -> np.ndarray:
    cv2 = import_cv2()
    canvas = np.zeros(shape, np.uint8)
    for x, y in points:
        cv2.circle(canvas, (int(x), int(y)), radius, 1, -1)
    return canvas > 0


def _alike_around(smooth: np.ndarray, points: tuple[Point, ...], tolerance: int = 9) -> np.ndarray:
    """Connected surroundings of each point that have nearly the point's own colour; bool `[h, w]`."""
    cv2 = import_cv2()
    height, width = smooth.shape[:2]
    filled = np.zeros((height + 2, width + 2), np.uint8)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
    for x, y in points:
        cv2.floodFill(smooth, filled, (int(x), int(y)), 0, (tolerance,) * 3, (tolerance,) * 3, flags)
    return filled[1:-1, 1:-1] > 0


def _box_labels(shape: tuple[int, int], boxes: tuple[Box, ...]) -> np.ndarray:
    """Background outside the boxes, probable subject in the ellipse inside each, probable background in its corners.

    A side of the box at the rim of the picture is not rounded: there the subject goes on outside.
    """
    cv2 = import_cv2()
    height, width = shape
    labels = np.full(shape, cv2.GC_BGD, np.uint8)
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    for x0, y0, x1, y1 in boxes:
        across, down = 2 * (columns - (x0 + x1) / 2) / (x1 - x0), 2 * (rows - (y0 + y1) / 2) / (y1 - y0)
        inside = (np.abs(across) <= 1) & (np.abs(down) <= 1)
        rim = 0.01 * max(height, width)
        for side, distance, at_rim in (
            (-1, across, x0 <= rim),
            (1, across, x1 >= width - rim),
            (-1, down, y0 <= rim),
            (1, down, y1 >= height - rim),
        ):
            if at_rim:
                distance[distance * side > 0] = 0
        ellipse = across**2 + down**2 <= 1
        labels[inside & ellipse] = cv2.GC_PR_FGD
        labels[inside & ~ellipse & (labels == cv2.GC_BGD)] = cv2.GC_PR_BGD
    return labels


def _start(lab: np.ndarray, prompt: Prompt) -> np.ndarray:
    """First guess: OpenCV labels (sure/probable x background/subject) from boxes and points."""
    cv2 = import_cv2()
    height, width = lab.shape[:2]
    labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    if prompt.boxes:
        labels = _box_labels((height, width), prompt.boxes)
    elif not prompt.positive:
        # Nobody said where: the middle is only a guess, so the subject may reach out of it.
        x0, y0, x1, y1 = (int(value) for value in centred_box(width, height))
        labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    outside = labels == cv2.GC_BGD
    radius = max(2, round(0.012 * max(height, width)))
    positive = _discs((height, width), prompt.positive, radius)
    negative = _discs((height, width), prompt.negative, radius)
    smooth = cv2.bilateralFilter(lab, 5, 20, 3)
    if prompt.positive and not prompt.boxes:
        # A point says little about colour: grow it to its surroundings along the edges of the picture first, so that
        # the colour model has something to learn from.
        markers = np.zeros((height, width), np.int32)
        rim = max(1, round(0.01 * max(height, width)))
        markers[:rim], markers[-rim:], markers[:, :rim], markers[:, -rim:] = 2, 2, 2, 2
        markers[negative] = 2
        markers[positive] = 1
        cv2.watershed(cv2.GaussianBlur(lab, (0, 0), 2.0), markers)
        labels[markers == 1] = cv2.GC_PR_FGD
    like_positive = _alike_around(smooth, prompt.positive) & ~outside
    like_negative = _alike_around(smooth, prompt.negative)
    labels[like_positive & ~like_negative] = cv2.GC_FGD
    labels[like_negative & ~like_positive] = cv2.GC_BGD
    labels[positive] = cv2.GC_FGD
    labels[negative] = cv2.GC_BGD
    return labels


def largest_parts(mask: np.ndarray, keep: np.ndarray | None = None, share: float = 0.05) -> np.ndarray:
    """Drop specks: keep connected parts of at least `share` of the largest one, and those that touch `keep`."""
    cv2 = import_cv2()
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    wanted = areas >= share * areas.max()
    if keep is not None:
        wanted[np.unique(parts[keep & mask])] = True
    wanted[0] = False
    return wanted[parts]


def fill_small_holes(mask: np.ndarray, sure_ground: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Fill enclosed background of at most `share` of the subject each: dark folds, reflections, printed patches.

    Args:
        mask: bool `[H, W]`.
        sure_ground: bool `[H, W]`; a hole that holds such a pixel stays open.
        share: of the subject's area.
    """
    cv2 = import_cv2()
    count, parts, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    fill = stats[:, cv2.CC_STAT_AREA] <= share * mask.sum()
    for rim in (parts[0], parts[-1], parts[:, 0], parts[:, -1], parts[sure_ground]):
        fill[np.unique(rim)] = False
    fill[0] = False
    return mask | fill[parts] if count > 1 else mask


def cut(image: np.ndarray, labels: np.ndarray, iterations: int) -> np.ndarray:
    """Run GrabCut from OpenCV labels; bool `[H, W]`, true = subject.

    When the labels hold no subject or no background at all there is nothing to learn colours from and the labels are
    returned as they are.
    """
    cv2 = import_cv2()
    subject = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    # OpenCV fits five Gaussians to each side and fails below that many pixels.
    if subject.sum() < 5 or (~subject).sum() < 5:
        return subject
    labels = labels.copy()
    cv2.setRNGSeed(0)
    cv2.grabCut(image, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), iterations, cv2.GC_INIT_WITH_MASK)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def upsample_edge(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Bring a mask to the size of its picture, its edge following the picture's (guided filter, He et al. 2010).

    Args:
        mask: bool `[h, w]`.
        image: uint8 `[H, W, 3]`.

    Returns:
        bool `[H, W]`.
    """
    cv2 = import_cv2()
    height, width = image.shape[:2]
    if mask.shape == (height, width):
        return mask
    radius = max(2, round(2 * width / mask.shape[1]))
    target = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * radius + 1, 2 * radius + 1))

    mean_guide, mean_target = mean(guide), mean(target)
    slope = (mean(guide * target) - mean_guide * mean_target) / (mean(guide * guide) - mean_guide**2 + 1e-3)
    offset = mean_target - slope * mean_guide
    return mean(slope) * guide + mean(offset) > 0.5


def _scaled(points: tuple[Point, ...], sx: float, sy: float) -> tuple[Point, ...]:
    return tuple((x * sx, y * sy) for x, y in points)


def _scaled_box(box: Box, sx: float, sy: float) -> Box:
    return box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy


@dataclass(frozen=True)
class Evidence:
    """What is known about a frame beside its expected mask; each bool `[H, W]`."""

    trusted: np.ndarray
    """Inside the mask: surely subject away from the edge. Elsewhere the inside may be cut away too."""
    foreign: np.ndarray
    """Not in the subject's colours: counts as background to begin with where it is not trusted."""
    outside: np.ndarray
    """Surely background unless it touches the mask's edge."""


def refine_edge(lab: np.ndarray, mask: np.ndarray, band: int, iterations: int = 2, evidence: Evidence | None = None) -> np.ndarray:
    """Cut again in a band of `band` pixels on both sides of the mask's edge; what lies deeper stays.

    Args:
        lab: uint8 `[H, W, 3]`, CIE Lab.
        mask: bool `[H, W]`.
        band: pixels.
        iterations: rounds of colour fitting and cutting.
        evidence: more about the frame; without it the inside stays whole.

    Returns:
        bool `[H, W]`.
    """
    cv2 = import_cv2()
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    near = cv2.dilate(mask.astype(np.uint8), kernel) > 0
    # Outside the picture the subject goes on: its rim is no edge.
    deep = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    labels = np.full(mask.shape, cv2.GC_BGD, np.uint8)
    labels[near] = cv2.GC_PR_BGD
    labels[mask] = cv2.GC_PR_FGD
    labels[deep if evidence is None else deep & evidence.trusted] = cv2.GC_FGD
    if evidence is not None:
        labels[near & ~evidence.trusted & evidence.foreign] = cv2.GC_PR_BGD
        edge = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        labels[evidence.outside & ~edge] = cv2.GC_BGD
    rows, columns = np.nonzero(near)
    if not len(rows):
        return mask
    # Colours of the background are learned from the surroundings only; this is also what makes small subjects cheap.
    margin = 3 * band
    y0, y1 = max(0, rows.min() - margin), rows.max() + margin + 1
    x0, x1 = max(0, columns.min() - margin), columns.max() + margin + 1
    refined = np.zeros_like(mask)
    refined[y0:y1, x0:x1] = cut(lab[y0:y1, x0:x1], labels[y0:y1, x0:x1], iterations)
    return refined


def _scaled(points: tuple[Point, ...], sx: float, sy: float) -> tuple[Point, ...]:
    return tuple((x * sx, y * sy) for x, y in points)


def _scaled_prompt(prompt: Prompt, sx: float, sy: float) -> Prompt:
    boxes = tuple((x0 * sx, y0 * sy, x1 * sx, y1 * sy) for x0, y0, x1, y1 in prompt.boxes)
    return Prompt(_scaled(prompt.positive, sx, sy), _scaled(prompt.negative, sx, sy), boxes)


def _shrunk_lab(image: np.ndarray, longest: int) -> np.ndarray:
    cv2 = import_cv2()
    height, width = working_size(*image.shape[:2], longest)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)


def segment_grabcut(image: np.ndarray, prompt: Prompt, iterations: int = 6) -> np.ndarray:
    """Cut the subject out of one picture.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        prompt: boxes and points in pixels. Outside the boxes is background; a point also speaks for the connected
            surroundings of its colour. Without a box or a positive point the search starts in the middle 80 %.
        iterations: rounds of colour fitting and cutting of the first, coarse cut.

    Returns:
        bool `[H, W]`, true = subject.
    """
    cv2 = import_cv2()
    height, width = image.shape[:2]
    coarse = _shrunk_lab(image, COARSE_SIDE)
    labels = _start(coarse, _scaled_prompt(prompt, coarse.shape[1] / width, coarse.shape[0] / height))
    mask = largest_parts(cut(coarse, labels, iterations), labels == cv2.GC_FGD, ISLAND)
    fine = _shrunk_lab(image, FINE_SIDE)
    if fine.shape != coarse.shape and mask.any():
        size = (fine.shape[1], fine.shape[0])
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
        sure = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        mask = refine_edge(fine, mask, band=max(3, round(2.5 * fine.shape[1] / coarse.shape[1])))
        mask = largest_parts((mask | (sure == cv2.GC_FGD)) & (sure != cv2.GC_BGD), sure == cv2.GC_FGD, ISLAND)
        labels = sure
    mask = fill_small_holes(mask, labels == cv2.GC_BGD)
    return upsample_edge(mask, image)
