"""Which layer of ComfyUI's UNet or of the adapter gives each intermediate tensor of a DynamiCrafter file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...adapter import MagDiffAdapter
from ..blocks import FIRST_CONVOLUTION
from .observe import Observer

SITE = "input_blocks.1.1"
BLOCK = f"{SITE}.transformer_blocks.0"


@dataclass(frozen=True)
class _Shown:
    """How a layer's value is laid out in a file. Every value here belongs to the first level but `frames_first`'s."""

    observer: Observer
    frames: int
    size: tuple[int, int]

    def frames_first(self, x: Tensor) -> Tensor:
        """`[clips * F, C, h, w]` -> `[F, C, h, w]`."""
        return self.observer.cond_row(x)

    def channels_first(self, x: Tensor) -> Tensor:
        """`[clips * F, C, h, w]` or `[clips, C, F, h * w]` -> `[C, F, h, w]`."""
        x = self.observer.cond_row(x)
        return x.transpose(0, 1) if x.shape[0] == self.frames else x[0].unflatten(-1, self.size)

    def tokens(self, x: Tensor) -> Tensor:
        """`[clips * F, h * w, C]` or `[clips, F * h * w, C]` -> `[F, h, w, C]`."""
        return self.observer.cond_row(x).reshape(self.frames, *self.size, -1)

    def pixels(self, x: Tensor) -> Tensor:
        """`[clips * h * w, F, C]` -> `[h, w, F, C]`."""
        return self.observer.cond_row(x).unflatten(0, self.size)

    def row(self, x: Tensor) -> Tensor:
        """`[clips * F, C]` -> `[1, C]`."""
        return self.observer.cond_row(x)[:1]


def observe(
    wanted: Iterable[str],
    observer: Observer,
    model: ModelPatcher,
    adapter: MagDiffAdapter,
    frames: int,
    latent_size: tuple[int, int],
) -> None:
    """Register with `observer` every name of `wanted` that a layer gives, and `res.both`: the tokens of positive and negative."""
    shown = _Shown(observer, frames, latent_size)
    unet = model.model.diffusion_model
    block: BasicTransformerBlock = unet.get_submodule(BLOCK)
    conv, temporal = adapter.temporal.conv.find("input_blocks.1.0"), adapter.temporal.transformer.find(SITE)
    first = adapter.temporal.transformer.find(FIRST_CONVOLUTION)
    places: dict[str, tuple[Callable, torch.nn.Module, Callable]] = {
        "mid.time_embed": (observer.output, unet.time_embed, shown.row),
        "mid.fps_embed": (observer.output, adapter.temporal.fps_embedding, _as_is),
        "mid.in0": (observer.input, first, shown.frames_first),
        "mid.init_attn": (observer.output, first, shown.frames_first),
        "mid.in1_tconv_in": (observer.input, conv, shown.channels_first),
        "mid.in1_tconv_gn0": (observer.output, conv.layers[0].norm, shown.channels_first),
        "mid.in1_tconv": (observer.output, conv, shown.channels_first),
        "mid.in1_spatial": (observer.output, unet.get_submodule(SITE), shown.frames_first),
        "mid.tt_norm": (observer.output, temporal.norm, shown.channels_first),
        "mid.tt_attn1_out": (observer.output, temporal.blocks[0].attn1, shown.pixels),
        "mid.tt_attn2_out": (observer.output, temporal.blocks[0].attn2, shown.pixels),
        "mid.tt_blk_out": (observer.output, temporal.blocks[0], shown.pixels),
        "mid.in1_temporal": (observer.output, temporal, shown.channels_first),
        "mid.blk_after_attn1": (observer.input, block.norm2, shown.tokens),
        "mid.apa_in": (observer.output, block.norm2, shown.tokens),
        "mid.apa_pre_to_out": (observer.input, block.attn2.to_out, shown.tokens),
        "mid.apa_out": (observer.output, block.attn2.to_out, shown.tokens),
        "mid.mid": (observer.output, adapter.temporal.conv.find("middle_block.2"), shown.frames_first),
        "res.layer0_attn": (observer.output, adapter.projector.layers[0][0], lambda x: x[:1]),
        "res.both": (observer.output, adapter.projector, _as_is),
    }
    for name in [*wanted, "res.both"]:
        whole = re.fullmatch(r"mid\.(?P<side>in|ob)(?P<index>\d+)", name)
        if name in places:
            register, module, layout = places[name]
            register(name, module, layout)
        elif whole:
            last = _last_layer(unet, adapter, "input_blocks" if whole["side"] == "in" else "output_blocks", int(whole["index"]))
            observer.output(name, last, shown.frames_first)
    if "mid.alpha" in wanted:
        observer.values["mid.alpha"] = torch.atanh(adapter.apa.find(BLOCK).alpha_image - 1.0).detach()
    if "mid.apa_text" in wanted:
        _observe_streams(observer, model, shown)


def _last_layer(unet: torch.nn.Module, adapter: MagDiffAdapter, blocks: str, index: int) -> torch.nn.Module:
    """The layer that gives what a whole block gives: of the base, or of the adapter where one follows it."""
    block = unet.get_submodule(f"{blocks}.{index}")
    site = f"{blocks}.{index}.{len(block) - 1}"
    following = adapter.temporal.layers_after(site)
    return following[-1] if following else adapter.temporal.conv.find(site) or block[-1]


def _as_is(x: Tensor) -> Tensor:
    return x


def _observe_streams(observer: Observer, model: ModelPatcher, shown: _Shown) -> None:
    """Both attentions of the first cross-attention, before they are weighed: no layer gives them, ComfyUI's attention does."""
    order = ("self-attention", "mid.apa_text", "mid.apa_image")
    seen: list[str] = []

    def attention(function: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        out = function(q, k, v, *args, **kwargs)
        if observer.observing and kwargs["transformer_options"]["block"] == ("input", 1) and len(seen) < len(order):
            name = order[len(seen)]
            seen.append(name)
            if name.startswith("mid."):
                observer.values[name] = shown.tokens(out.detach().clone())
        return out

    model.model_options["transformer_options"]["optimized_attention_override"] = attention
