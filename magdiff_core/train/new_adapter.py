"""Weights of an untrained adapter that fits a given UNet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapter import AdapterConfig, ImageEncoderConfig, MagDiffAdapter
from ..config import ALL_FRAMES

QUERIES = 16
PROJECTOR_DEPTH = 2
LEVEL_HIDDEN = 32


def adapter_config(image_width: int, projector_heads: int, latent_scale: float, prediction: str = "v") -> AdapterConfig:
    """The small model's: last layer, no crop, RGB; and the subject latent in every frame.

    The paper gives it to the first frame alone; here all of the subject would have to go through a few narrow layers along time.
    Measured: RMSE 0.157 after 12000 steps with that, 0.131 after 8500 more with this and a better autoencoder (not told apart).
    """
    return AdapterConfig(
        base="the small model magdiff-mini.safetensors",
        prediction=prediction,
        latent_scale=latent_scale,
        projector_heads=projector_heads,
        subject_frames=ALL_FRAMES,
        image_encoder=ImageEncoderConfig(width=image_width, layer="last", crop=False, channels="rgb"),
        licence="GPL-3.0-or-later",
        trained_from="scratch, on procedural clips, together with its base",
    )


def adapter_shapes(
    unet: Mapping[str, Tensor], image_width: int, token_width: int, projector_depth: int = PROJECTOR_DEPTH
) -> dict[str, torch.Size]:
    """Key -> shape of a whole adapter for a UNet state dict in LDM names: Temp-Conv at every ResBlock, Temp-Attn and image
    stream at every transformer block, subject branch with pyramid, Resampler."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in unet.items():
        if key.endswith(".out_layers.3.weight"):
            site, width = key.removesuffix(".out_layers.3.weight"), value.shape[0]
            for layer in range(4):
                shapes[f"temporal.conv.{site}.layers.{layer}.norm.weight"] = (width,)
        elif key.endswith(".attn2.to_q.weight"):
            site, width = key.removesuffix(".attn2.to_q.weight"), value.shape[0]
            shapes[f"temporal.attn.{site}.norm.weight"] = (width,)
            shapes[f"apa.{site}.to_k_image.weight"] = (width, token_width)
    model_channels, latent_channels = unet["input_blocks.0.0.weight"].shape[:2]
    shapes["hfa.conv_z.weight"] = (model_channels, latent_channels, 3, 3)
    for level in ("1", "2"):
        shapes[f"hfa.level.{level}.conv_in.weight"] = (LEVEL_HIDDEN, latent_channels, 3, 3)
    shapes["projector.latents"] = (1, QUERIES, token_width)
    shapes["projector.proj_in.weight"] = (token_width, image_width)
    shapes["projector.proj_out.weight"] = (token_width, token_width)
    for layer in range(projector_depth):
        shapes[f"projector.layers.{layer}.0.to_q.weight"] = (token_width, token_width)
        shapes[f"projector.layers.{layer}.1.1.weight"] = (4 * token_width, token_width)
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def new_adapter_weights(
    unet: Mapping[str, Tensor],
    config: AdapterConfig,
    token_width: int,
    key_gain: float,
    value_gain: float,
    projector_depth: int = PROJECTOR_DEPTH,
) -> dict[str, Tensor]:
    """A whole state dict from torch's global generator. The temporal residuals and the upper pyramid levels start at zero.

    `key_gain`, `value_gain`: factors on the projections of the image tokens, as the base has them for the prompt.
    """
    adapter = MagDiffAdapter(adapter_shapes(unet, config.image_encoder.width, token_width, projector_depth), config)
    torch.nn.init.normal_(adapter.projector.latents, std=token_width**-0.5)
    with torch.no_grad():
        for stream in (adapter.apa.find(site) for site in adapter.apa.sites):
            stream.to_k_image.weight.mul_(key_gain)
            stream.to_v_image.weight.mul_(value_gain)
    zero = [adapter.temporal.conv.find(site).layers[-1].conv for site in adapter.temporal.conv.sites]
    zero += [adapter.temporal.attn.find(site).to_out for site in adapter.temporal.attn.sites]
    zero += [level.conv_out for level in adapter.hfa.level.values()]
    for layer in zero:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return {key: value.detach() for key, value in adapter.state_dict().items()}
