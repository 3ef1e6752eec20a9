"""APA on Wan 2.1 image-to-video: the text and the picture stream of its cross-attention, each with a factor.

Wan's own cross-attention is `o(A(q, K_t, V_t) + A(q, K_i, V_i))`, which is MagDiff's eq. 3 ("fixed prompts alignment") with both
weights 1. The two attentions are weighed before they are summed, where core lets a run override attention; nothing of the model is
copied or replaced. Keys are normalised in Wan, so no scaling of tokens could do the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.ldm.wan.model import WanI2VCrossAttention, WanSelfAttention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..alignment.apa import AlphaSettings

_log = logging.getLogger("magdiff")

WAN_KEY = "magdiff_wan"
"""Key of our wrappers, and transformer_options entry of a MODEL: `WanSettings`."""
WEIGHTS = "magdiff_wan_weights"
"""transformer_options entry that exists during one call of the model: the factors of text and picture at this step."""
OVERRIDE = "optimized_attention_override"
"""transformer_options entry of core: `override(attention, q, k, v, ...)` runs in the place of `attention(q, k, v, ...)`."""

_PER_BLOCK = ("self", "picture", "text")
"""The attentions of a Wan block in the order in which it calls them."""


@dataclass(frozen=True)
class WanSettings:
    """The sliders, and the blocks in which they act: `first_block` .. `last_block`, both included."""

    alphas: AlphaSettings
    first_block: int
    last_block: int


def apply_wan_alphas(model: ModelPatcher, alphas: AlphaSettings, first_block: int = 0, last_block: int = -1) -> ModelPatcher:
    """A clone of `model` whose cross-attention is `alpha_text * A(q, K_t, V_t) + alpha_image * A(q, K_i, V_i)`.

    Replaces what an earlier application had set. Both alphas 1 install nothing. Blocks count from 0; -1 is the last one.
    Raises ValueError for a model without a picture stream, and for a range of blocks that is empty or beyond the model.
    """
    count = _picture_blocks(model)
    last = count - 1 if last_block == -1 else last_block
    if not 0 <= first_block <= last < count:
        raise ValueError(
            f"first_block {first_block} and last_block {last_block}: this model has blocks 0 to {count - 1}, "
            "first_block must not be above last_block (-1 = the last block)"
        )
    model = model.clone()
    for wrapper_type in WRAPPERS:
        model.remove_wrappers_with_key(wrapper_type, WAN_KEY)
    options = model.model_options["transformer_options"]
    options.pop(WAN_KEY, None)
    if (alphas.alpha_text, alphas.alpha_image) == (1.0, 1.0):
        return model
    options[WAN_KEY] = WanSettings(alphas, first_block, last)
    for wrapper_type, wrapper in WRAPPERS.items():
        model.add_wrapper_with_key(wrapper_type, WAN_KEY, wrapper)
    return model


def _picture_blocks(model: ModelPatcher) -> int:
    """How many blocks `model` has; raises ValueError unless each of them has a picture stream."""
    network = model.model.diffusion_model
    attentions = [getattr(block, "cross_attn", None) for block in getattr(network, "blocks", ())]
    if attentions and all(isinstance(attention, WanI2VCrossAttention) for attention in attentions):
        return len(attentions)
    if not any(isinstance(attention, WanSelfAttention) for attention in attentions):
        raise ValueError(
            f"APA for Wan needs Wan 2.1 image-to-video, this MODEL is a {type(network).__name__}. "
            "For Stable Diffusion 1.5 and 2.1 use Apply MagDiff Adapter and APA Conditioning"
        )
    why = "it is a text-to-video model"
    if network.patch_embedding.weight.shape[1] > network.out_dim:
        why = "it sees the picture only as latents beside the noise, as Wan 2.2 A14B does"
    raise ValueError(
        f"this Wan model has no picture stream in its cross-attention: {why}. There is nothing for alpha_image to weigh; "
        "load a Wan 2.1 image-to-video model (its file has the key img_emb.proj.0.bias)"
    )


def say_without_picture(executor, *args, **kwargs):
    """OUTER_SAMPLE: say which conditionings bring no picture; the sliders leave those alone."""
    lacking = [name for name, items in executor.class_obj.conds.items() if not all(map(_has_picture, items))]
    if lacking:
        _log.warning(
            "APA for Wan does nothing for the %s conditioning: it has no clip_vision_output. "
            "Wire CLIP Vision Encode into WanImageToVideo",
            " and ".join(lacking),
        )
    return executor(*args, **kwargs)


def _has_picture(cond: dict) -> bool:
    return cond.get("clip_vision_output") is not None or "clip_fea" in cond.get("model_conds", {})


def weigh_step(executor, x: Tensor, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conds):
    """APPLY_MODEL: the factors at this step."""
    transformer_options = transformer_options.copy()
    alphas = transformer_options[WAN_KEY].alphas
    weights = alphas.alpha_text, alphas.alpha_image
    if (alphas.start_percent, alphas.end_percent) != (0.0, 1.0):
        # Decided on the device: reading sigma back would stop it at every step.
        sampling, sigma = executor.class_obj.model_sampling, transformer_options["sigmas"][0]
        inside = (sigma <= sampling.percent_to_sigma(alphas.start_percent)) & (
            sigma > sampling.percent_to_sigma(alphas.end_percent)
        )
        weights = tuple(torch.where(inside, alpha, 1.0) for alpha in weights)
    transformer_options[WEIGHTS] = weights
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)


def weigh_call(executor, x: Tensor, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
    """DIFFUSION_MODEL: weigh the attentions of this call; without a picture core reads the text twice, which is left alone."""
    # WanDancer has a second picture, whose tokens follow those of the first.
    pictures = [tokens for tokens in (clip_fea, kwargs.get("clip_fea_ref")) if tokens is not None]
    if pictures:
        transformer_options = transformer_options.copy()
        transformer_options[OVERRIDE] = WeighedStreams(
            transformer_options[WAN_KEY],
            *transformer_options[WEIGHTS],
            picture_tokens=sum(tokens.shape[-2] for tokens in pictures),
            previous=transformer_options.get(OVERRIDE),
        )
    return executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)


class WeighedStreams:
    """Attention override of one call of the model.

    A block calls attention three times: for itself, for the picture, for the text. Which one it is follows from the order within
    the block; the count of keys alone would not do, as a clip may have as many tokens as a picture. `previous`: the override that
    was set before, for example another attention kernel; it does the work and is weighed.
    """

    def __init__(
        self,
        settings: WanSettings,
        weight_text: float | Tensor,
        weight_image: float | Tensor,
        picture_tokens: int,
        previous: Callable[..., Tensor] | None = None,
    ):
        self.settings = settings
        self.weights = {"text": weight_text, "picture": weight_image}
        self.picture_tokens = picture_tokens
        self.previous = previous
        self.block = None
        self.done = 0

    def __call__(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, *args, **kwargs) -> Tensor:
        run = attention if self.previous is None else self.previous
        first = () if self.previous is None else (attention,)
        out = run(*first, q, k, *args, **kwargs)
        block = kwargs["transformer_options"]["block_index"]
        if block != self.block:
            self.block, self.done = block, 0
        stream = _PER_BLOCK[self.done]
        if stream == "picture" and k.shape[-2] != self.picture_tokens:
            # An attention that another pack put into the block.
            return out
        self.done = (self.done + 1) % len(_PER_BLOCK)
        weight = self.weights.get(stream, 1.0)
        inside = self.settings.first_block <= block <= self.settings.last_block
        # No product with 1: it would cost a pass over the clip.
        return out * weight if inside and not (isinstance(weight, float) and weight == 1.0) else out


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: say_without_picture,
    WrappersMP.APPLY_MODEL: weigh_step,
    WrappersMP.DIFFUSION_MODEL: weigh_call,
}
