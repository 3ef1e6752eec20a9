"""Compare computed tensors with stored ones, and print a line for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-4
TOLERANCES = {
    "ddim.noise_pred": 3e-4,
    "ddim.eta1.noise_pred_guided_first": 3e-4,
    "ddim.latents": 2e-3,
    "ddim.eta0.latents": 2e-3,
    "ddim.eta1.latents": 2e-3,
    "ddim.timesteps": 0.0,
}
"""Largest absolute differences that are in order in float32; an independent implementation stays at a fifth of them."""

OK, OVER, NOT_COVERED = "ok", "OVER", "not covered"


@dataclass(frozen=True)
class Comparison:
    """One stored tensor: largest absolute difference and the tolerance for it; both None where nothing was computed."""

    name: str
    error: float | None = None
    tolerance: float | None = None

    @property
    def verdict(self) -> str:
        if self.error is None:
            return NOT_COVERED
        # NaN is over, too.
        return OK if self.error <= self.tolerance else OVER

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.name:<24} {'-':>10} {'-':>10}  {self.verdict}"
        return f"{self.name:<24} {self.error:>10.2e} {self.tolerance:>10.2e}  {self.verdict}"


def tolerance(name: str) -> float:
    """The tolerance for the stored tensor `name`."""
    return TOLERANCES.get(name, TOLERANCE)


def like_stored(computed: Tensor, stored: Tensor) -> Tensor:
    """Thin out `computed` to the grid of `stored`: every k-th element of a side that was stored k times smaller."""
    if computed.ndim != stored.ndim:
        raise ValueError(f"computed {tuple(computed.shape)}, stored {tuple(stored.shape)}")
    for dim, (full, kept) in enumerate(zip(computed.shape, stored.shape, strict=True)):
        if full != kept:
            step = math.ceil(full / kept)
            computed = computed[(slice(None),) * dim + (slice(None, None, step),)]
    return computed


def largest_difference(computed: Tensor, stored: Tensor) -> float:
    """Largest absolute difference; infinite when the shapes do not belong together."""
    try:
        computed = like_stored(computed, stored)
    except ValueError:
        return math.inf
    if computed.shape != stored.shape:
        return math.inf
    difference = (computed.double().cpu() - stored.double()).abs()
    return float(difference.max()) if torch.isfinite(difference).all() else math.inf


def compare(stored: Mapping[str, Tensor], computed: Mapping[str, Tensor], tolerance: Callable[[str], float]) -> list[Comparison]:
    """One `Comparison` for each stored tensor, in the order of their names."""
    return [
        Comparison(name, largest_difference(computed[name], value), tolerance(name)) if name in computed else Comparison(name)
        for name, value in sorted(stored.items())
    ]


def summary(comparisons: list[Comparison]) -> str:
    """`N covered, N over, N not covered`."""
    verdicts = [comparison.verdict for comparison in comparisons]
    covered = len(verdicts) - verdicts.count(NOT_COVERED)
    return f"{covered} covered, {verdicts.count(OVER)} over, {verdicts.count(NOT_COVERED)} not covered"
