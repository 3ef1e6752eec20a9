"""Means with two spreads: over the clips, and over the seeds of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def standard_error(values: Sequence[float]) -> float | None:
    """Deviation / sqrt(N) with N - 1 in the deviation; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


@dataclass(frozen=True)
class Figure:
    """A mean, its standard error over clips (each averaged over the seeds) and over seeds (each averaged over the clips)."""

    mean: float
    over_clips: float | None
    over_seeds: float | None


def figure(values: Sequence[Sequence[float]]) -> Figure:
    """Figure of `values[seed][clip]`; every seed has the same clips."""
    seeds = [math.fsum(row) / len(row) for row in values]
    clips = [math.fsum(column) / len(column) for column in zip(*values, strict=True)]
    return Figure(math.fsum(seeds) / len(seeds), standard_error(clips), standard_error(seeds))


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Figure:
    """Figure of `first - second`, clip by clip and seed by seed: what all clips and seeds share drops out of the spreads."""
    return figure([[a - b for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)])
