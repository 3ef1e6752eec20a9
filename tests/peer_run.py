"""One guided call of ComfyUI's own UNet with our adapter on it, beside what a diffusers model gives for the same input."""

from __future__ import annotations

import dataclasses

import torch
from diffusers_models import SCALED_LINEAR
from torch import Tensor

from magdiff_core.host.adapter_file import adapter_patcher
from magdiff_core.host.attach import apply_adapter
from magdiff_core.host.call import PartStrengths
from magdiff_core.host.parity.observe import Observer
from magdiff_core.host.parity.runs import unet_outputs
from magdiff_core.host.parity.small_model import small_model
from magdiff_core.weights.unet_names import UnetNames

TIMESTEP = 601
TOLERANCE = 1e-4
"""Largest difference of the two, over the largest value."""


def base_model(unet: dict[str, Tensor], heads: int = -1, head_width: int = -1):
    """A MODEL from UNet weights in LDM names; give one of the two head sizes."""
    return small_model(dict(unet), {"num_heads": heads, "num_head_channels": head_width}, SCALED_LINEAR)


def ldm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers UNet2DConditionModel's weights in LDM names."""
    names = UnetNames.of(weights)
    return {names.ldm(key): value for key, value in weights.items()}


def with_adapter(model, weights: dict[str, Tensor], config, strengths: PartStrengths | None = None, **changes):
    """`model` with an adapter of these weights; `changes` to its configuration, for a base whose text may be of another width."""
    changes.setdefault("text_width", 0)
    loaded = adapter_patcher(weights, dataclasses.replace(config, **changes))
    return apply_adapter(model, loaded, strengths or PartStrengths())


def predict(model, latent: Tensor, positive: list, negative: list, timestep: int = TIMESTEP) -> tuple[Tensor, Tensor]:
    """What the UNet gives for `latent` `[F, 4, h, w]`: of the positive and of the negative row, each `[F, 4, h, w]`."""
    with Observer(model) as observer:
        ((negative_row, positive_row),) = unet_outputs(model, observer, latent, timestep, positive, negative)
    return positive_row, negative_row


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def conditioning(text: Tensor, **extras) -> list:
    return [[text, extras]]


def check(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(theirs).all() and theirs.std() > 0.05
    assert difference(ours, theirs) < TOLERANCE
