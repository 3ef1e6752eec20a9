"""Which layer of ComfyUI's UNet or of the adapter gives each intermediate tensor (`mid.*`, `res.*`) of a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.model_patcher import ModelPatcher

from ...adapter import MagDiffAdapter
from ...temporal.position import frame_positions
from ...weights.unet_names import UnetNames
from .observe import Observer
from .shown import Place, Shown, as_is, cross_attention_places, observe_streams

_log = logging.getLogger("magdiff")


def observe(
    wanted: Iterable[str],
    observer: Observer,
    model: ModelPatcher,
    adapter: MagDiffAdapter,
    names: UnetNames,
    frames: int,
    latent_size: tuple[int, int],
) -> None:
    """Register with `observer` every name of `wanted` that a layer gives."""
    sizes = [latent_size]
    for _ in range(1, names.levels):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))

    def shown(level: int) -> Shown:
        return Shown(observer, frames, sizes[level])

    unet = model.model.diffusion_model
    places = {
        r"mid\.temb": lambda name: observer.output(name, unet.time_embed, lambda x: observer.cond_row(x)[0]),
        # The sum of the base's first convolution and of the subject branch is what the first norm sees.
        r"mid\.conv_in": lambda name: observer.input(name, unet.input_blocks[1][0].in_layers[0], shown(0).channels_first),
        r"mid\.norm_out": lambda name: observer.output(name, unet.out[0], shown(0).channels_first),
        r"mid\.mid": lambda name: observer.output(name, adapter.temporal.conv.find("middle_block.2"), shown(-1).channels_first),
        r"mid\.mid_attn": lambda name: observer.output(name, unet.middle_block[1], shown(-1).channels_first),
        r"mid\.pe(\d+)": lambda name, channels: observer.values.update({name: frame_positions(frames, int(channels))}),
        r"res\.proj_in": lambda name: observer.output(name, adapter.projector.proj_in, as_is),
        r"res\.layer(\d+)_attn": lambda name, i: observer.output(name, adapter.projector.layers[int(i)][0], as_is),
        r"res\.tokens": lambda name: observer.output(name, adapter.projector, as_is),
    }

    def layer_of_level(name: str, side: str, level: str, kind: str, index: str) -> None:
        level, index = int(level), int(index)
        block = (names.layers + 1) * level + index + (1 if side == "d" else 0)
        depth = level if side == "d" else names.levels - 1 - level
        blocks = "input_blocks" if side == "d" else "output_blocks"
        if kind == "attn":
            return observer.output(name, unet.get_submodule(f"{blocks}.{block}.1"), shown(depth).channels_first)
        temp_conv = adapter.temporal.conv.find(f"{blocks}.{block}.0")
        if kind == "res":
            return observer.input(name, temp_conv, shown(depth).channels_first)
        module = temp_conv.layers[0].norm if kind == "tconv_gn" else temp_conv
        return observer.output(name, module, shown(depth).channels_first)

    places[r"mid\.([du])(\d+)_(res|attn|tconv)(\d+)"] = layer_of_level
    places[r"mid\.([du])(\d+)_tconv(\d+)_gn0"] = lambda name, side, level, i: layer_of_level(name, side, level, "tconv_gn", i)

    def end_of_level(name: str, side: str, level: str) -> None:
        level, blocks = int(level), unet.input_blocks if side == "down" else unet.output_blocks
        last = (names.layers + 1) * (level + 1) - (0 if side == "down" else 1)
        resampled = level + 1 < names.levels
        if side == "down" and not resampled:
            last -= 1
        module = blocks[last][-1]
        if not resampled and len(blocks[last]) == 1:
            # A ResBlock: our handler runs its parts, and ends with Temp-Conv.
            module = adapter.temporal.conv.find(f"{'input' if side == 'down' else 'output'}_blocks.{last}.0")
        depth = level if side == "down" else names.levels - 1 - level
        return observer.output(name, module, shown(depth + resampled * (1 if side == "down" else -1)).channels_first)

    places[r"mid\.(down|up)(\d+)"] = end_of_level
    wanted = list(wanted)
    for name in wanted:
        for pattern, register in places.items():
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            try:
                register(name, *match.groups())
            except (AttributeError, IndexError):
                _log.warning("%s: this UNet has no such place", name)
    if isinstance(unet.input_blocks[1][-1], SpatialTransformer):
        _observe_block(wanted, observer, model, adapter, shown(0))


def _observe_block(wanted: list[str], observer: Observer, model: ModelPatcher, adapter: MagDiffAdapter, shown: Shown) -> None:
    """The first transformer block, `down_blocks.0.attentions.0.transformer_blocks.0`."""
    site = "input_blocks.1.1.transformer_blocks.0"
    block: BasicTransformerBlock = model.model.diffusion_model.get_submodule(site)
    temp_attn = adapter.temporal.attn.find(site)
    places: dict[str, Place] = {
        "mid.blk_in": (observer.input, block, shown.tokens),
        **cross_attention_places(observer, block, shown),
        "mid.attn2_out": (observer.output, block.attn2.to_out, shown.tokens),
        "mid.temp_in": (observer.input, temp_attn.norm, shown.tokens_in_time),
        "mid.temp_attn_out": (observer.output, temp_attn.to_out, shown.tokens_in_time),
        "mid.blk_after_temp": (observer.input, block.norm3, shown.tokens),
        "mid.blk_out": (observer.output, block, shown.tokens),
    }
    for name, (register, module, layout) in places.items():
        if name in wanted:
            register(name, module, layout)
    if adapter.apa is None:
        return
    stream = adapter.apa.find(site)
    if "mid.apa_scales" in wanted:
        observer.values["mid.apa_scales"] = torch.cat((stream.alpha_text, stream.alpha_image)).detach()
    streams = [name for name in ("mid.apa_text", "mid.apa_image") if name in wanted]
    if streams:
        observe_streams(observer, model, shown)
