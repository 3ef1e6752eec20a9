"""Random checkpoints in the layout of the released MagDiff and VidRD code, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Writer:
    """Collects random weights under names that the released code would give them."""

    def __init__(self, seed: int, scale: float):
        self.weights: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._scale = scale

    def weight(self, name: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        self.weights[name] = torch.randn(shape, generator=self._generator) * (self._scale / fan_in**0.5)

    def layer(self, name: str, *shape: int, bias: bool = True) -> None:
        self.weight(f"{name}.weight", *shape)
        if bias:
            self.weight(f"{name}.bias", shape[0])

    def norm(self, name: str, channels: int) -> None:
        self.layer(name, channels)
        self.weights[f"{name}.weight"] += 1.0

    def res_block(self, name: str, channels_in: int, channels: int, emb: int) -> None:
        self.norm(f"{name}.norm1", channels_in)
        self.layer(f"{name}.conv1", channels, channels_in, 3, 3)
        self.layer(f"{name}.time_emb_proj", channels, emb)
        self.norm(f"{name}.norm2", channels)
        self.layer(f"{name}.conv2", channels, channels, 3, 3)
        if channels_in != channels:
            self.layer(f"{name}.conv_shortcut", channels, channels_in, 1, 1)

    def temp_conv(self, name: str, channels: int) -> None:
        for first in (0, 4, 8, 12):
            self.norm(f"{name}.convs.{first}", channels)
            self.layer(f"{name}.convs.{first + 3}", channels, channels, 3, 1, 1)

    def transformer(self, name: str, channels: int, context: int, image_stream: bool) -> None:
        self.norm(f"{name}.norm", channels)
        block = f"{name}.transformer_blocks.0"
        for part in ("attn1", "attn2", "temp_attn"):
            for q in ("to_q", "to_k", "to_v"):
                width = context if part == "attn2" and q != "to_q" else channels
                self.layer(f"{block}.{part}.{q}", channels, width, bias=False)
            self.layer(f"{block}.{part}.to_out.0", channels, channels)
        if image_stream:
            for name_of in ("to_k_ip", "to_v_ip"):
                self.layer(f"{block}.attn2.{name_of}", channels, context, bias=False)
            self.weights[f"{block}.attn2.text_cross_attention_scale"] = torch.tensor([1.0])
            self.weights[f"{block}.attn2.image_cross_attention_scale"] = torch.tensor([1.5])
        for norm in ("norm1", "norm2", "norm3", "temp_norm"):
            self.norm(f"{block}.{norm}", channels)
        self.layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        self.layer(f"{block}.ff.net.2", channels, 4 * channels)
        self.layer(f"{name}.proj_in", channels, channels)
        self.layer(f"{name}.proj_out", channels, channels)


def unet_weights(
    widths: Sequence[int] = (32, 64),
    attention: Sequence[bool] = (True, True),
    layers: int = 1,
    context: int = 32,
    image_stream: bool = True,
    seed: int = 0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """A UNet with `widths` and transformers by level, names without the `unet.` prefix."""
    writer, emb = _Writer(seed, scale), 4 * widths[0]
    writer.layer("conv_in", widths[0], 8 if image_stream else 4, 3, 3)
    writer.layer("time_embedding.linear_1", emb, widths[0])
    writer.layer("time_embedding.linear_2", emb, emb)

    def column(block: str, index: int, channels_in: int, channels: int, with_attention: bool) -> None:
        writer.res_block(f"{block}.resnets.{index}", channels_in, channels, emb)
        writer.temp_conv(f"{block}.temp_convs.{index}", channels)
        if with_attention:
            writer.transformer(f"{block}.attentions.{index}", channels, context, image_stream)

    skips, channels = [widths[0]], widths[0]
    for level, width in enumerate(widths):
        for index in range(layers):
            column(f"down_blocks.{level}", index, channels, width, attention[level])
            channels = width
            skips.append(channels)
        if level + 1 < len(widths):
            writer.layer(f"down_blocks.{level}.downsamplers.0.conv", channels, channels, 3, 3)
            skips.append(channels)
    column("mid_block", 0, channels, channels, True)
    column("mid_block", 1, channels, channels, False)
    for place, (width, with_attention) in enumerate(zip(reversed(widths), reversed(attention), strict=True)):
        for index in range(layers + 1):
            column(f"up_blocks.{place}", index, channels + skips.pop(), width, with_attention)
            channels = width
        if place + 1 < len(widths):
            writer.layer(f"up_blocks.{place}.upsamplers.0.conv", channels, channels, 3, 3)
    writer.norm("conv_norm_out", channels)
    writer.layer("conv_out", 4, channels, 3, 3)
    return writer.weights


def projector_weights(width: int = 32, heads_width: int = 32, image_width: int = 24, token_width: int = 32) -> dict[str, Tensor]:
    """A Resampler of one layer and 16 queries, names without the `enclip_projector.` prefix."""
    writer = _Writer(7, 1.0)
    writer.weight("latents", 1, 16, width)
    writer.layer("proj_in", width, image_width)
    writer.norm("layers.0.0.norm1", width)
    writer.norm("layers.0.0.norm2", width)
    writer.layer("layers.0.0.to_q", heads_width, width, bias=False)
    writer.layer("layers.0.0.to_kv", 2 * heads_width, width, bias=False)
    writer.layer("layers.0.0.to_out", width, heads_width, bias=False)
    writer.norm("layers.0.1.0", width)
    writer.layer("layers.0.1.1", 4 * width, width, bias=False)
    writer.layer("layers.0.1.3", width, 4 * width, bias=False)
    writer.layer("proj_out", token_width, width)
    writer.norm("norm_out", token_width)
    return writer.weights


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}
