"""Kinds of layers along time that run after a whole layer of the base, by the word that names them in an adapter file.

The keys of such a layer are `temporal.<kind>.<layer of the base>.<name inside>`. Each class has
`from_shapes(shapes, heads_of, **options)` and `forward(x, frames, positions, strength)`: `x` is `[clips * F, C, h, w]`, the result
is shaped like it and holds the residual; `positions(channels, like)` gives sinusoidal frame positions `[F, channels]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .motion_module import MotionModule, MotionModuleOverClip
from .temporal_transformer import TemporalTransformer


@dataclass(frozen=True)
class AfterLayer:
    """`build`: the class's `from_shapes`. `marker`: a key that every site of the kind has. `words`: what to call it."""

    build: Callable[..., nn.Module]
    marker: str
    words: str


AFTER_LAYER = {
    "transformer": AfterLayer(TemporalTransformer.from_shapes, "proj_in.weight", "the temporal transformer"),
    "motion": AfterLayer(MotionModule.from_shapes, "proj_in.weight", "the motion module"),
    "motion_over_clip": AfterLayer(MotionModuleOverClip.from_shapes, "proj_in.weight", "the motion module"),
}
