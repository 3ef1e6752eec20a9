"""Which layer of ComfyUI's UNet or of the adapter gives each intermediate tensor of a DynamiCrafter file."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher

from ...adapter import MagDiffAdapter
from ..blocks import FIRST_CONVOLUTION
from .observe import Observer
from .shown import Place, Shown, as_is, cross_attention_places, observe_streams

SITE = "input_blocks.1.1"
BLOCK = f"{SITE}.transformer_blocks.0"


def observe(
    wanted: Iterable[str],
    observer: Observer,
    model: ModelPatcher,
    adapter: MagDiffAdapter,
    frames: int,
    latent_size: tuple[int, int],
) -> None:
    """Register with `observer` every name of `wanted` that a layer gives, and `res.both`: the tokens of positive and negative."""
    shown = Shown(observer, frames, latent_size)
    unet = model.model.diffusion_model
    block: BasicTransformerBlock = unet.get_submodule(BLOCK)
    conv, temporal = adapter.temporal.conv.find("input_blocks.1.0"), adapter.temporal.transformer.find(SITE)
    first = adapter.temporal.transformer.find(FIRST_CONVOLUTION)
    places: dict[str, Place] = {
        "mid.time_embed": (observer.output, unet.time_embed, shown.row),
        "mid.fps_embed": (observer.output, adapter.temporal.fps_embedding, as_is),
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
        **cross_attention_places(observer, block, shown),
        "mid.mid": (observer.output, adapter.temporal.conv.find("middle_block.2"), shown.frames_first),
        "res.layer0_attn": (observer.output, adapter.projector.layers[0][0], lambda x: x[:1]),
        "res.both": (observer.output, adapter.projector, as_is),
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
        observe_streams(observer, model, shown)


def _last_layer(unet: torch.nn.Module, adapter: MagDiffAdapter, blocks: str, index: int) -> torch.nn.Module:
    """The layer that gives what a whole block gives: of the base, or of the adapter where one follows it."""
    block = unet.get_submodule(f"{blocks}.{index}")
    site = f"{blocks}.{index}.{len(block) - 1}"
    following = adapter.temporal.layers_after(site)
    return following[-1] if following else adapter.temporal.conv.find(site) or block[-1]
