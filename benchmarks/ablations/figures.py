"""Means with two spreads: over the clips, and over the seeds of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.spread import standard_error


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
