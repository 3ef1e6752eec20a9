"""Silhouettes and textures of the procedural subjects, as functions of polar or object coordinates.

A silhouette is a table of the outline's radius over the angle (the *polar radius table*), so that "inside" is one
comparison and an antialiased edge is one clamp. Object coordinates (u, w) are pixels divided by the subject's radius and
turned by its rotation: a texture given in them moves, grows and turns with the subject.
"""

from __future__ import annotations

import math

import torch

SHAPES = ("circle", "square", "triangle", "star", "heart", "hexagon", "flower", "cross", "diamond", "blob")
TEXTURES = ("plain", "striped", "checkered", "dotted", "spotted", "ringed", "split", "shaded")
ANGLES = 256
SPOTS = 6


def _polygon(theta: torch.Tensor, sides: int, turn: float) -> torch.Tensor:
    sector = (theta + turn) % (2 * math.pi / sides)
    return math.cos(math.pi / sides) / torch.cos(sector - math.pi / sides)


def outline_table() -> torch.Tensor:
    """Polar radius of each shape, `[len(SHAPES), ANGLES]`, in subject radii; "blob" is a circle here (see `blob_table`)."""
    theta = torch.arange(ANGLES) * 2 * math.pi / ANGLES
    sine, cosine = torch.sin(theta), torch.cos(theta)
    sector = ((theta - math.pi / 2) % (2 * math.pi / 5)) / (math.pi / 5)
    sector = torch.where(sector > 1, 2 - sector, sector) * (math.pi / 5)
    outer, inner = 1.28, 0.58
    star = outer * inner * math.sin(math.pi / 5) / (inner * torch.sin(math.pi / 5 - sector) + outer * torch.sin(sector))
    heart = (2 - 2 * sine + sine * cosine.abs().sqrt() / (sine + 1.4)) / 2.6
    arm = 0.42
    cross = torch.maximum(
        torch.minimum(arm / (cosine.abs() + 1e-6), 1.12 / (sine.abs() + 1e-6)),
        torch.minimum(arm / (sine.abs() + 1e-6), 1.12 / (cosine.abs() + 1e-6)),
    )
    circle = torch.ones(ANGLES)
    return torch.stack([
        circle,
        1.15 * _polygon(theta, 4, math.pi / 4),
        1.35 * _polygon(theta, 3, math.pi / 2),
        star,
        heart,
        1.08 * _polygon(theta, 6, 0.0),
        1 + 0.28 * torch.cos(5 * theta),
        cross,
        1.25 * _polygon(theta, 4, 0.0),
        circle,
    ])


def blob_table(coefficients: torch.Tensor) -> torch.Tensor:
    """Random smooth outlines. `coefficients [B, 4, 2]` in 0..1: amplitude and phase of the harmonics 2 to 5.

    Returns `[B, ANGLES]` in subject radii.
    """
    theta = torch.arange(ANGLES)[None, None] * 2 * math.pi / ANGLES
    order = torch.arange(2, 6)[None, :, None]
    amplitude = 0.16 * (coefficients[:, :, :1] * 2 - 1)
    return 1 + (amplitude * torch.cos(order * theta + 2 * math.pi * coefficients[:, :, 1:])).sum(1)


def _edge(value: torch.Tensor, softness: float = 2.2) -> torch.Tensor:
    return (0.5 + value * softness).clamp(0, 1)


def texture_weight(
    texture: torch.Tensor,
    u: torch.Tensor,
    w: torch.Tensor,
    angle: torch.Tensor,
    cycles: torch.Tensor,
    phase: torch.Tensor,
    spots: torch.Tensor,
) -> torch.Tensor:
    """Share of the second colour at each pixel.

    Args:
        texture: `[B]` indices into `TEXTURES`.
        u, w: `[B, F, h, w]` object coordinates in subject radii.
        angle: `[B]` direction of the texture in radians.
        cycles: `[B]` periods per subject radius.
        phase: `[B, 2]` radians.
        spots: `[B, SPOTS, 2]` spot centres in -1..1.

    Returns:
        `[B, F, h, w]` in 0..1; 0 is the first colour, 1 the second.
    """
    wide = lambda value: value[:, None, None, None]  # noqa: E731
    along = wide(angle.cos()) * u + wide(angle.sin()) * w
    across = -wide(angle.sin()) * u + wide(angle.cos()) * w
    p = along * 2 * math.pi * wide(cycles) + wide(phase[:, 0])
    q = across * 2 * math.pi * wide(cycles) + wide(phase[:, 1])
    result = torch.zeros_like(u)
    for name, index in ((name, TEXTURES.index(name)) for name in TEXTURES):
        rows = (texture == index).nonzero()[:, 0]
        if name == "plain" or not len(rows):
            continue
        if name == "striped":
            value = _edge(torch.sin(p[rows]))
        elif name == "checkered":
            value = _edge(1.5 * torch.sin(0.75 * p[rows]) * torch.sin(0.75 * q[rows]))
        elif name == "dotted":
            value = _edge(0.5 * torch.cos(p[rows]) + 0.5 * torch.cos(q[rows]) - 0.3)
        elif name == "spotted":
            centre = spots[rows][:, :, :, None, None, None]
            distance = ((u[rows][:, None] - centre[:, :, 0]) ** 2 + (w[rows][:, None] - centre[:, :, 1]) ** 2).sqrt()
            value = ((0.36 - distance.amin(1)) * 10).clamp(0, 1)
        elif name == "ringed":
            radius = (u[rows] ** 2 + w[rows] ** 2).sqrt()
            value = _edge(torch.sin(radius * 2 * math.pi * wide(cycles[rows]) + wide(phase[rows, 0])))
        elif name == "split":
            value = _edge(2 * along[rows])
        else:
            value = (0.5 + 0.5 * along[rows]).clamp(0, 1)
        result[rows] = value
    return result
