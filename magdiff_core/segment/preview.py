"""The picture that shows what was segmented and where the track is weak."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch

from .images import import_cv2, to_bytes
from .track import WEAK

TINT = np.array([40, 210, 110], np.float32)
TINT_WEAK = np.array([240, 70, 60], np.float32)
LONGEST = 768
"""Longest side of the preview in pixels."""


def _overlay(picture: np.ndarray, mask: np.ndarray, weak: bool) -> np.ndarray:
    """Background darkened, subject tinted, its outline drawn."""
    cv2 = import_cv2()
    tint = TINT_WEAK if weak else TINT
    share = mask[..., None].astype(np.float32)
    values = picture.astype(np.float32)
    shown = share * (0.75 * values + 0.25 * tint) + (1 - share) * 0.4 * values
    shown = np.clip(shown, 0, 255).astype(np.uint8)
    outlines, _ = cv2.findContours((mask >= 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(mask.shape) / 400))
    return cv2.drawContours(shown, outlines, -1, tuple(int(v) for v in tint), thickness, cv2.LINE_AA)


def _write(picture: np.ndarray, text: str, x: int, y: int, scale: float) -> None:
    cv2 = import_cv2()
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)


def _curve(confidence: np.ndarray, given: Collection[int], current: int, width: int, height: int) -> np.ndarray:
    """Confidence over the clip as bars, red where weak, blue where a mask was given; the current frame is marked."""
    cv2 = import_cv2()
    strip = np.full((height, width, 3), 24, np.uint8)
    frames = len(confidence)
    for index, value in enumerate(confidence):
        left, right = round(index * width / frames), max(round((index + 1) * width / frames) - 1, 0)
        colour = (90, 140, 250) if index in given else tuple(int(v) for v in (TINT_WEAK if value < WEAK else TINT))
        top = round((height - 3) * (1 - max(float(value), 0.06))) + 2
        cv2.rectangle(strip, (left, top), (max(left, right), height - 1), colour, -1)
        if index == current:
            cv2.rectangle(strip, (left, 0), (max(left, right), height - 1), (255, 255, 255), 1)
    threshold = round((height - 3) * (1 - WEAK)) + 2
    cv2.line(strip, (0, threshold), (width - 1, threshold), (150, 150, 150), 1)
    return strip


def preview_frames(
    images: torch.Tensor,
    subject_mask: torch.Tensor,
    confidence: torch.Tensor | None = None,
    given: Collection[int] = (),
    each_frame: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Subject in colour, the rest dark; clips also get the frame number and the confidence of all frames as bars.

    Args:
        images: `[F, H, W, 3]`, float 0..1.
        subject_mask: `[F, H, W]`.
        confidence: `[F]`, 0..1; None when nothing was followed: then there are no bars.
        given: frames whose mask was given (blue bars).
        each_frame: called after each frame.

    Returns:
        `[F, h, w, 3]`, float 0..1; longest side at most 768 pixels plus the bars' height.
    """
    cv2 = import_cv2()
    frames, height, width = images.shape[:3]
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = []
    values = None if confidence is None else confidence.numpy()
    for index in range(frames):
        picture, mask = to_bytes(images[index]), subject_mask[index].numpy()
        if scale < 1:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        weak = values is not None and values[index] < WEAK
        frame = _overlay(picture, mask, weak)
        if frames > 1:
            label = f"{index}" if values is None or index in given else f"{index}  {values[index]:.2f}"
            letter = max(0.35, size[0] / 900)
            _write(frame, label + ("  weak" if weak else ""), 4, round(8 + 24 * letter), letter)
        if values is not None and frames > 1:
            bars = _curve(values, given, index, size[0], max(18, round(0.08 * size[1])))
            frame = np.concatenate([frame, bars])
        shown.append(torch.from_numpy(frame))
        if each_frame is not None:
            each_frame()
    return torch.stack(shown).float() / 255
