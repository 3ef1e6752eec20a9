"""Which module turns the image encoder's output into image tokens, by the keys of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from .pooled_projection import PooledProjection
from .resampler import Resampler


def build_projector(shapes: Mapping[str, torch.Size], heads: int, **options) -> nn.Module | None:
    """The projector whose weights (names without `projector.`) have these shapes; None where there are none.

    Raises ValueError when `heads` attention heads do not divide its channels.
    """
    if "latents" in shapes:
        return _resampler(shapes, heads, **options)
    if "proj.weight" in shapes:
        width, image_width = shapes["proj.weight"]
        (token_width,) = shapes["norm.weight"]
        return PooledProjection(image_width, token_width, width // token_width, **options)
    return None


def _resampler(shapes: Mapping[str, torch.Size], heads: int, **options) -> Resampler:
    _, queries, width = shapes["latents"]
    inner = shapes["layers.0.0.to_q.weight"][0]
    if inner % heads:
        raise ValueError(
            f"the config of this adapter names {heads} projector heads, which do not divide the projector's {inner} channels"
        )
    return Resampler(
        image_width=shapes["proj_in.weight"][1],
        width=width,
        token_width=shapes["proj_out.weight"][0],
        queries=queries,
        depth=sum(key.startswith("layers.") and key.endswith(".0.to_q.weight") for key in shapes),
        heads=heads,
        inner=inner,
        feed_forward=shapes["layers.0.1.1.weight"][0],
        **options,
    )
