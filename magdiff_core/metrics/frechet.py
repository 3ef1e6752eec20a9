"""Frechet distance of two sets of features, as FVD uses it (Unterthiner et al. 2019; Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED_CLIPS = 2048
"""Clips from which on published FVD values are computed (StyleGAN-V's protocol; MagDiff uses 10,000 and 2,990)."""


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and covariance `[D, D]` (n - 1) of features `[n, D]`, in float64. Raises ValueError for fewer than 2 rows."""
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(f"features have shape {list(features.shape)}: a covariance needs 2 rows or more")
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is taken from the eigenvalues of C1^(1/2) C2 C1^(1/2), which are those of C1 C2 but of a symmetric
    matrix: so covariances without full rank (fewer clips than features) need no correction term.

    Args:
        one: mean `[D]` and covariance `[D, D]`, float64.
        other: the same of the other set.
    """
    (mean_one, covariance_one), (mean_other, covariance_other) = one, other
    values, vectors = torch.linalg.eigh(covariance_one)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ covariance_other @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_one - mean_other).square().sum() + covariance_one.trace() + covariance_other.trace() - 2 * cross
    return max(0.0, float(distance))


def count_warning(clips: int, features: int) -> str | None:
    """What to know about an FVD of so few clips; None from `PUBLISHED_CLIPS` on."""
    if clips <= features:
        return (
            f"FVD of {clips} clips means nothing by itself: the covariance of {features} features needs more clips than features. "
            f"Published values use {PUBLISHED_CLIPS} or more"
        )
    if clips < PUBLISHED_CLIPS:
        return (
            f"FVD of {clips} clips is too high, the more so the fewer clips: compare it only with values of as many clips. "
            f"Published values use {PUBLISHED_CLIPS} or more"
        )
    return None
