"""Patches of single UNet layers. Each takes its state from the running `Call`; none keeps anything itself."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..alignment.apa import dual_cross_attention
from ..temporal.clip_norm import clip_group_norm
from .call import Call
from .names import CALL

FIRST_CONVOLUTION = "input_blocks.0.0"
"""Site of layers that follow the first convolution; all others follow a ResBlock or a SpatialTransformer."""


def block_name(block: tuple[str, int]) -> str:
    """ComfyUI's ("input", 4) -> the LDM name `input_blocks.4`."""
    name, index = block
    return "middle_block" if name == "middle" else f"{name}_blocks.{index}"


def _site(call: Call, layer: torch.nn.Module, block: tuple[str, int]) -> str:
    name = block_name(block)
    return next(f"{name}.{i}" for i, child in enumerate(call.unet.get_submodule(name)) if child is layer)


def _finish_layer(call: Call, layer: torch.nn.Module, site: str, x: Tensor) -> Tensor:
    """Run what follows the whole layer `site`, and keep the output of the last layer of all."""
    for following in call.temporal.layers_after(site):
        x = following(x, call.frames, call.positions, call.strengths.temporal)
    if layer is call.unet.output_blocks[-1][-1]:
        call.last_output = x
    return x


def run_res_block(layer, x, emb, context, transformer_options, *_) -> Tensor:
    """Handler of ResBlock: its own layers, with norms over the clip or the frame as trained, then Temp-Conv."""
    call: Call = transformer_options[CALL]
    if call.clip_norm:
        norm, activation, conv = layer.in_layers
        h = conv(activation(clip_group_norm(norm, x, call.frames)))
        h = h + layer.emb_layers(emb).to(h.dtype)[..., None, None]
        norm, activation, _, conv = layer.out_layers
        x = layer.skip_connection(x) + conv(activation(clip_group_norm(norm, h, call.frames)))
    else:
        x = layer(x, emb)
    site = _site(call, layer, transformer_options["block"])
    temp_conv = call.temporal.conv.find(site)
    if temp_conv is not None:
        x = temp_conv(x, call.frames, call.strengths.temporal)
    return _finish_layer(call, layer, site, x)


def run_spatial_transformer(layer, x, emb, context, transformer_options, *_) -> Tensor:
    """Handler of SpatialTransformer: names the transformer that runs and keeps the output of the last one."""
    call: Call = transformer_options[CALL]
    call.transformer = _site(call, layer, transformer_options["block"])
    x = layer(x, context, transformer_options)
    transformer_options["transformer_index"] += 1
    return _finish_layer(call, layer, call.transformer, x)


def _transformer_block(extra_options: dict) -> str:
    return f"{extra_options[CALL].transformer}.transformer_blocks.{extra_options['block_index']}"


def keep_stream(x: Tensor, extra_options: dict) -> Tensor:
    """middle_patch: remember the residual stream before cross-attention."""
    extra_options[CALL].stream = x
    return x


def add_temp_attn(increment: Tensor, extra_options: dict) -> Tensor:
    """attn2_output_patch: Temp-Attn on the stream after cross-attention, given back as part of the increment."""
    call: Call = extra_options[CALL]
    stream, call.stream = call.stream, None
    layer = call.temporal.attn.find(_transformer_block(extra_options))
    if layer is None:
        return increment
    positions = call.positions(stream.shape[-1], stream)
    return layer(stream + increment, call.frames, extra_options["n_heads"], positions, call.strengths.temporal) - stream


def one_prompt_row(n: Tensor, context: Tensor, value: Tensor, extra_options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """attn2_patch: where all frames of a clip share the prompt, project its keys and values for one row a clip."""
    call: Call = extra_options[CALL]
    if call.one_prompt_per_clip and attention_site(extra_options["block"], extra_options["block_index"]) in call.owned_attention:
        context = value = context[:: call.frames]
    return n, context, value


def attention_site(block: tuple[str, int], block_index: int) -> tuple[str, int, int]:
    """The key under which core looks up a replaced cross-attention."""
    return (*block, block_index)


class WeighedCrossAttention:
    """attn2_replace of one transformer block: text and picture, weighed (MagDiff eq. 4).

    `previous`: a replacement that another pack had set before; it takes the place of the text stream and is weighed like it.
    """

    def __init__(self, site: str, previous=None):
        self.site = site
        self.previous = previous

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, extra_options: dict) -> Tensor:
        call: Call = extra_options[CALL]
        stream = call.adapter.apa.find(self.site)
        weight_text, weight_image = stream.weights(call.alphas.mode, call.strengths.image_stream, like=q)

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # All frames of a clip share these keys, so they form one long query: nothing is repeated.
            folded = q.reshape(k.shape[0], -1, q.shape[-1])
            return optimized_attention(
                folded,
                k,
                v,
                extra_options["n_heads"],
                attn_precision=extra_options["attn_precision"],
                transformer_options=extra_options,
            ).reshape(q.shape)

        if self.previous is not None:
            plain_attention = attention

            def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return self.previous(q, k, v, extra_options) if k is key else plain_attention(q, k, v)

        image = None if call.tokens is None else call.image_key_value(self.site, q)
        return dual_cross_attention(
            q, (key, value), image, weight_text * call.slider_text, weight_image * call.slider_image, attention
        )


def add_subject_term(h: Tensor, transformer_options: dict) -> Tensor:
    """input_block_patch: after the first convolution, add `conv_z(z_s)` (equal to a convolution of `z_n` and `z_s`)."""
    if transformer_options["block"] != ("input", 0):
        return h
    call: Call = transformer_options[CALL]
    if call.latents is None:
        return h
    term = call.subject_term(h) * call.strengths.pyramid
    return (h.unflatten(0, (call.clips, call.frames)) + term).flatten(0, 1)


def run_after_first_convolution(h: Tensor, transformer_options: dict) -> Tensor:
    """input_block_patch, after `add_subject_term`: layers along time that follow the first convolution."""
    if transformer_options["block"] != ("input", 0):
        return h
    call: Call = transformer_options[CALL]
    for layer in call.temporal.layers_after(FIRST_CONVOLUTION):
        h = layer(h, call.frames, call.positions, call.strengths.temporal)
    return h


def add_fps(emb: Tensor, model_channels: int, transformer_options: dict) -> Tensor:
    """emb_patch: the frame rate, as a term of the time embedding."""
    call: Call = transformer_options[CALL]
    return torch.add(emb, call.fps_term(emb), alpha=call.strengths.temporal)
