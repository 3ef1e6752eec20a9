"""Random checkpoints in the layout of VideoCrafter and DynamiCrafter, made out of a random one of the released MagDiff code."""

from __future__ import annotations

import re

import released
import torch
from torch import Tensor

HEADS = 8

_PLACES = {"0": "conv1.0", "3": "conv1.2"}
for _number in (2, 3, 4):
    _PLACES |= {str(4 * _number - 4): f"conv{_number}.0", str(4 * _number - 1): f"conv{_number}.3"}
_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _block(channels: int, name: str, random) -> dict[str, Tensor]:
    weights = {}
    for norm in ("norm1", "norm2", "norm3"):
        weights |= {f"{name}.{norm}.weight": 1 + random(channels), f"{name}.{norm}.bias": random(channels)}
    for attention in ("attn1", "attn2"):
        weights |= {f"{name}.{attention}.to_{x}.weight": random(channels, channels) for x in "qkv"}
        out = f"{name}.{attention}.to_out.0"
        weights |= {f"{out}.weight": random(channels, channels), f"{out}.bias": random(channels)}
    weights |= {f"{name}.ff.net.0.proj.weight": random(8 * channels, channels), f"{name}.ff.net.0.proj.bias": random(8 * channels)}
    return weights | {f"{name}.ff.net.2.weight": random(channels, 4 * channels), f"{name}.ff.net.2.bias": random(channels)}


def _transformer(channels: int, inner: int, name: str, random, convolution: bool) -> dict[str, Tensor]:
    ends = (1,) if convolution else ()
    return {
        f"{name}.norm.weight": 1 + random(channels),
        f"{name}.norm.bias": random(channels),
        f"{name}.proj_in.weight": random(inner, channels, *ends),
        f"{name}.proj_in.bias": random(inner),
        f"{name}.proj_out.weight": random(channels, inner, *ends),
        f"{name}.proj_out.bias": random(channels),
        **_block(inner, f"{name}.transformer_blocks.0", random),
    }


def unet_weights(
    widths=(32, 64), attention=(True, True), context=32, alpha=True, image_stream=True, channels_in=8, head=16, scale=1.0, seed=0
) -> dict[str, Tensor]:
    """A UNet with one ResBlock a level, names without the prefix `model.diffusion_model.`.

    `alpha`: learned weights as in DynamiCrafter-256.
    """
    generator = torch.Generator().manual_seed(seed + 100)

    def random(*shape: int) -> Tensor:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=generator) * (0.3 * scale / fan_in**0.5)

    source = released.unet_weights(widths, attention, layers=1, context=context, image_stream=True, seed=seed, scale=scale)
    levels = len(widths)
    weights: dict[str, Tensor] = {}
    outside = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    outside |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for key, value in source.items():
        module, _, tensor = key.rpartition(".")
        if module in outside:
            weights[f"{outside[module]}.{tensor}"] = value
            continue
        side, rest = key.split(".", 1)
        level = 0 if side == "mid_block" else int(rest.split(".", 1)[0])
        kind, index, name = (rest if side == "mid_block" else rest.split(".", 1)[1]).split(".", 2)
        block, upsampler = "middle_block", 0
        if side == "down_blocks":
            block = f"input_blocks.{2 * level + 1 + (kind == 'downsamplers')}"
        elif side == "up_blocks":
            block = f"output_blocks.{2 * level + (1 if kind == 'upsamplers' else int(index))}"
            upsampler = 3 if attention[levels - 1 - level] else 1
        place = 3 * int(index) if side == "mid_block" else 0
        if kind == "temp_convs":
            number, _, tensor = name.removeprefix("convs.").partition(".")
            weights[f"{block}.{place}.temopral_conv.{_PLACES[number]}.{tensor}"] = value
        elif kind == "resnets":
            module, _, tensor = name.rpartition(".")
            weights[f"{block}.{place}.{_RES_BLOCK[module]}.{tensor}"] = value
        elif kind == "downsamplers":
            weights[f"{block}.0.op.{name.removeprefix('conv.')}"] = value
        elif kind == "upsamplers":
            weights[f"{block}.{upsampler}.{name}"] = value
        elif ".temp_attn." not in name and ".temp_norm." not in name and not name.endswith("_attention_scale"):
            if image_stream or not name.endswith(("to_k_ip.weight", "to_v_ip.weight")):
                weights[f"{block}.1.{name}"] = value
    for site in [match[1] for key in list(weights) if (match := re.fullmatch(r"(.+)\.1\.proj_in\.weight", key))]:
        channels = weights[f"{site}.1.proj_in.weight"].shape[0]
        weights |= _transformer(channels, channels, f"{site}.2", random, convolution=False)
        if alpha:
            weights[f"{site}.1.transformer_blocks.0.attn2.alpha"] = random()
    weights |= _transformer(widths[0], HEADS * head, "init_attn.0", random, convolution=True)
    width = weights["time_embed.2.weight"].shape[0]
    for layer, size in ((0, widths[0]), (2, width)):
        weights |= {f"fps_embedding.{layer}.weight": random(width, size), f"fps_embedding.{layer}.bias": random(width)}
    weights["input_blocks.0.0.weight"] = weights["input_blocks.0.0.weight"][:, :channels_in]
    return weights


def checkpoint(projector: dict[str, Tensor] | None = None, **unet) -> dict[str, Tensor]:
    """The UNet of `unet_weights(**unet)` and a projector, under the names of a published file."""
    weights = released.prefixed("model.diffusion_model.", unet_weights(**unet))
    return weights | released.prefixed("image_proj_model.", released.projector_weights() if projector is None else projector)
