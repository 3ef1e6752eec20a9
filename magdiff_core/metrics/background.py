"""Which background a procedural clip has (colour and pattern) and how still it is.

Every colour, pattern and phase that the clips can have is compared with the pixels outside the subject, and the best fit
wins. With figure map g of a pattern and tones (a, b) the squared error of a picture x is quadratic in the tones, so that
all hypotheses come from four sums a frame.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.procedural import CELL, DOT_PERIOD, DOT_RADIUS, PATTERNS, SIZE, background_tones

PHASE_STEP = 2
"""Pixels between the phases that are tried. The clips' own patterns begin at the corner; one that drifts keeps its name."""
MARGIN = 3
"""Pixels around the subject that count as neither subject nor background."""


@dataclass(frozen=True)
class BackgroundFit:
    """colour: index into `COLOURS`; pattern: index into `PATTERNS`; picture `[F, h, w, 3]`: the fitted background."""

    colour: int
    pattern: int
    picture: torch.Tensor


@functools.lru_cache(maxsize=1)
def figure_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the figure tone for every pattern and phase: maps `[K, h, w]` in 0..1 and pattern index `[K]`."""
    place = torch.arange(SIZE) + 0.5
    band = lambda phase: ((place + phase) / CELL).floor() % 2  # noqa: E731
    shifts = [float(step) for step in range(0, int(2 * CELL), PHASE_STEP)]
    maps: list[torch.Tensor] = []
    names: list[str] = []

    def add(name: str, figure: torch.Tensor) -> None:
        maps.append(figure.expand(SIZE, SIZE))
        names.append(name)

    add("plain", torch.zeros(SIZE, SIZE))
    for shift in shifts:
        add("striped", band(shift)[:, None])
        add("barred", band(shift)[None])
        for other in shifts[: len(shifts) // 2]:
            add("checkered", (band(shift)[:, None] + band(other)[None]) % 2)
    for down in range(0, int(DOT_PERIOD), PHASE_STEP):
        for right in range(0, int(DOT_PERIOD), PHASE_STEP):
            y, x = (place + down) % DOT_PERIOD - DOT_PERIOD / 2, (place + right) % DOT_PERIOD - DOT_PERIOD / 2
            add("dotted", (DOT_RADIUS + 0.5 - torch.sqrt(y[:, None] ** 2 + x[None] ** 2)).clamp(0, 1))
    return torch.stack(maps), torch.tensor([PATTERNS.index(name) for name in names])


def outside(subject_mask: torch.Tensor, margin: int = MARGIN) -> torch.Tensor:
    """`[F, h, w]` float: 1 where no subject is within `margin` pixels, else 0."""
    return 1 - F.max_pool2d((subject_mask > 0.02).float()[:, None], 2 * margin + 1, 1, margin)[:, 0]


def fit_background(frames: torch.Tensor, subject_mask: torch.Tensor) -> BackgroundFit:
    """The background that explains the pixels outside the subject best.

    Each frame may take the phase that fits it best: a pattern that drifts keeps its name, `flicker` tells the drift.

    Args:
        frames: `[F, 64, 64, 3]` in 0..1.
        subject_mask: `[F, 64, 64]`, bool or 0..1; what is left out, with a margin.

    Raises:
        ValueError: the frames have another size than the procedural clips.
    """
    if frames.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"frames have shape {list(frames.shape)}: procedural clips are [F, {SIZE}, {SIZE}, 3]")
    weight = outside(subject_mask).flatten(1)
    # Robust against a subject that was found too large: the border always counts a little.
    weight = weight + 1e-3
    maps, pattern = figure_maps()
    tones = background_tones()
    g = maps.flatten(1)
    x = frames.flatten(1, 2) * weight[..., None]
    # |x - a (1 - g) - b g|^2, expanded; sums over pixels: [F, K] and [F, K, 3].
    figure_x = torch.einsum("kp,fpc->fkc", g, x)
    ground_x = x.sum(1)[:, None] - figure_x
    figure_figure, figure_one, one = weight @ g.square().T, weight @ g.T, weight.sum(1)[:, None]
    ground_ground = one - 2 * figure_one + figure_figure
    cross = figure_one - figure_figure
    a, b = tones[:, 0], tones[:, 1]
    error = (
        torch.einsum("fk,n->fnk", ground_ground, a.square().sum(1))
        + torch.einsum("fk,n->fnk", figure_figure, b.square().sum(1))
        + 2 * torch.einsum("fk,n->fnk", cross, (a * b).sum(1))
        - 2 * torch.einsum("fkc,nc->fnk", ground_x, a)
        - 2 * torch.einsum("fkc,nc->fnk", figure_x, b)
    )
    best = torch.stack([error[..., pattern == index].amin(-1) for index in range(len(PATTERNS))], -1)
    colour, which = divmod(int(best.sum(0).flatten().argmin()), len(PATTERNS))
    choice = error[:, colour].masked_fill(pattern != which, float("inf")).argmin(1)
    return BackgroundFit(colour, which, _own_tones(frames, weight, maps[choice], tones[colour]))


def _own_tones(frames: torch.Tensor, weight: torch.Tensor, figure: torch.Tensor, tones: torch.Tensor) -> torch.Tensor:
    """The figure maps `[F, h, w]` in the clip's own two tones (least squares over the clip, held near `tones [2, 3]`)."""
    basis = torch.stack([1 - figure, figure], -1).flatten(0, 2)
    weighted = basis * weight.flatten()[:, None]
    hold = 0.01 * weight.sum() * torch.eye(2)
    solved = torch.linalg.solve(weighted.T @ basis + hold, weighted.T @ frames.flatten(0, 2) + hold @ tones)
    return (basis @ solved).reshape(frames.shape)


def flicker(frames: torch.Tensor, subject_mask: torch.Tensor) -> float:
    """Mean absolute change from frame to frame outside the subject, in 0..1; 0 for a still background.

    Args:
        frames: `[F, h, w, 3]` in 0..1.
        subject_mask: `[F, h, w]`, bool or 0..1. A pixel counts where neither of two frames has the subject near.
    """
    free = outside(subject_mask)
    both = (free[1:] * free[:-1])[..., None]
    change = (frames[1:] - frames[:-1]).abs() * both
    return float(change.sum() / (both.sum() * frames.shape[-1]).clamp_min(1))
