"""Random checkpoints in the layout of VideoCrafter1 image-to-video, around a UNet of any size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

FIRST_HEAD = 64
"""Width of a head of the layers along time."""


def image_to_video(unet: Mapping[str, torch.Size], image_width: int, tokens: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A whole `model.ckpt` without its encoders. `unet`: LDM name -> shape of a UNet of SD2.1's kind."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        made[name] = torch.randn(shape, generator=generator) * scale + (len(shape) == 1 and name.endswith("weight"))

    def layer(name: str, *shape: int) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0])

    def along_time(name: str, channels: int, inner: int, first: bool = False) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.proj_in", inner, channels, *((1,) if first else ()))
        layer(f"{name}.proj_out", channels, inner, *((1,) if first else ()))
        block = f"{name}.transformer_blocks.0"
        for attention in ("attn1", "attn2"):
            for x in "qkv":
                put(f"{block}.{attention}.to_{x}.weight", inner, inner)
            layer(f"{block}.{attention}.to_out.0", inner, inner)
        for number in (1, 2, 3):
            layer(f"{block}.norm{number}", inner)
        layer(f"{block}.ff.net.0.proj", 8 * inner, inner)
        layer(f"{block}.ff.net.2", inner, 4 * inner)

    context = next(shape[1] for name, shape in unet.items() if name.endswith("attn2.to_k.weight"))
    root = "model.diffusion_model."
    for name, shape in unet.items():
        place = re.sub(r"^(middle_block)\.2\.", r"\1.3.", name)
        # an upsampler behind a transformer makes room for the layer along time
        place = re.sub(r"^(output_blocks\.\d+)\.2\.conv\.", r"\1.3.conv.", place)
        put(root + place, *shape)
        block, _, inside = place.partition(".out_layers.3.")
        if inside == "weight":
            for number in range(4):
                layer(f"{root}{block}.temopral_conv.conv{number + 1}.0", shape[0])
                layer(f"{root}{block}.temopral_conv.conv{number + 1}.{3 if number else 2}", shape[0], shape[0], 3, 1, 1)
        transformer, _, inside = place.partition(".1.proj_out.")
        if inside == "weight":
            along_time(f"{root}{transformer}.2", shape[0], shape[0])
        if place.endswith(".attn2.to_k.weight"):
            for name_of in ("to_k_ip", "to_v_ip"):
                put(root + place.replace("to_k", name_of), shape[0], context)
    width = unet["input_blocks.0.0.weight"][0]
    along_time(f"{root}init_attn.0", width, 8 * min(FIRST_HEAD, width // 2), first=True)
    for number, outof in ((0, width), (2, 4 * width)):
        layer(f"{root}fps_embedding.{number}", 4 * width, outof)
    inner = 64
    put("image_proj_model.latents", 1, tokens, inner)
    layer("image_proj_model.proj_in", inner, image_width)
    layer("image_proj_model.proj_out", context, inner)
    layer("image_proj_model.norm_out", context)
    root = "image_proj_model.layers.0."
    for norm in ("0.norm1", "0.norm2", "1.0"):
        layer(root + norm, inner)
    for name, shape in (("0.to_q", (64, inner)), ("0.to_kv", (128, inner)), ("0.to_out", (inner, 64))):
        put(f"{root}{name}.weight", *shape)
    put(f"{root}1.1.weight", 4 * inner, inner)
    put(f"{root}1.3.weight", inner, 4 * inner)
    return made
