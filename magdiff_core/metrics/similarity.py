"""Cosine similarities of frames: with each other, with a prompt, with a given subject."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PerFrame = tuple[float, list[float]]
"""A value for the clip and one for each frame, NaN where a frame has none."""


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double().cpu(), dim=-1)


def all_pairs(features: Tensor) -> PerFrame:
    """Frame consistency of MagDiff (section 4.1): mean cosine similarity over all pairs of two different frames.

    Args:
        features: `[F, D]`, of an image encoder.

    Returns:
        the mean over pairs, and of each frame the mean with all others; NaN for a single frame.
    """
    similarity = _unit(features) @ _unit(features).T
    others = len(features) - 1
    if others == 0:
        return math.nan, [math.nan]
    by_frame = (similarity.sum(1) - similarity.diagonal()) / others
    return float(by_frame.mean()), by_frame.tolist()


def consecutive_pairs(features: Tensor) -> PerFrame:
    """Temporal consistency of ReVideo (section 5.2): mean cosine similarity of each frame with the one before.

    Args:
        features: `[F, D]`, of an image encoder.

    Returns:
        the mean over pairs, and of each frame that with the one before; NaN for the first.
    """
    unit = _unit(features)
    by_pair = (unit[1:] * unit[:-1]).sum(1)
    return float(by_pair.mean()) if len(by_pair) else math.nan, [math.nan, *by_pair.tolist()]


def with_each(features: Tensor, others: Tensor) -> PerFrame:
    """Mean cosine similarity of each frame with each of some other features.

    With the prompt's features this is the textual alignment, with those of the subject's pictures the DINO score.

    Args:
        features: `[F, D]`; a row of NaN is a frame that does not count.
        others: `[n, D]`, n at least 1.
    """
    by_frame = (_unit(features) @ _unit(others).T).mean(1)
    known = by_frame[~by_frame.isnan()]
    return float(known.mean()) if len(known) else math.nan, by_frame.tolist()


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the values that are no NaN; NaN where they are too few."""
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    mean = float(known.mean()) if len(known) else math.nan
    return mean, float(known.std()) if len(known) > 1 else math.nan
