"""Wrappers around a sampling run and around each call of the model: they make, hand on and drop the state of the patches."""

from __future__ import annotations

import math

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..alignment.apa import AlphaSettings
from ..temporal.clip_norm import clip_group_norm
from .blocks import WeighedCrossAttention, attention_site, one_prompt_row
from .call import Call
from .checks import check_run
from .conds import ClipTokens
from .names import CALL, COND_ALPHAS, COND_LATENTS, COND_TOKENS, FPS, PATCH_KEY, RUN_CACHE, SETTINGS
from .neighbours import say_replaced_attention
from .run_cache import NoCache, RunCache

ACTIVATION_HEADROOM = 1.25
"""Activations of the temporal layers and of the second stream over those of the base, for ComfyUI's memory plan."""


def sampling_run(executor, noise: Tensor, latent_image: Tensor, *args, **kwargs):
    """OUTER_SAMPLE: check what was wired before anything is loaded, and give the run a cache that ends with it."""
    guider = executor.class_obj
    check_run(guider.model_patcher, guider.conds, noise, latent_image)
    transformer_options = guider.model_options.setdefault("transformer_options", {})
    adapter = guider.model_patcher.get_additional_models_with_key(PATCH_KEY)[0].model
    if adapter.apa is not None and transformer_options[SETTINGS].image_stream > 0.0:
        say_replaced_attention(transformer_options, adapter.apa.sites)
    transformer_options[RUN_CACHE] = RunCache()
    _put_innermost(transformer_options)
    try:
        return executor(noise, latent_image, *args, **kwargs)
    finally:
        transformer_options.pop(RUN_CACHE, None)


def _put_innermost(transformer_options: dict) -> None:
    """Of all wrappers around the UNet ours must be the last: EasyCache and its like keep what they see of its output."""
    around_unet = dict(transformer_options["wrappers"][WrappersMP.DIFFUSION_MODEL])
    around_unet[PATCH_KEY] = around_unet.pop(PATCH_KEY)
    transformer_options["wrappers"] = {**transformer_options["wrappers"], WrappersMP.DIFFUSION_MODEL: around_unet}


def plan_memory(executor, model, noise_shape, *args, **kwargs):
    """PREPARE_SAMPLING: let core plan for the activations of our layers."""
    # Wider, not more frames: core's context windows cut the count of frames to one window after us.
    width = math.ceil(noise_shape[-1] * ACTIVATION_HEADROOM)
    return executor(model, [*noise_shape[:-1], width], *args, **kwargs)


def _slider(alpha: float, settings: AlphaSettings, model_sampling, transformer_options: dict) -> float | Tensor:
    if (settings.start_percent, settings.end_percent) == (0.0, 1.0):
        return alpha
    # Decided on the device: reading sigma back would stop it at every step.
    sigma = transformer_options["sigmas"][0]
    inside = (sigma <= model_sampling.percent_to_sigma(settings.start_percent)) & (
        sigma > model_sampling.percent_to_sigma(settings.end_percent)
    )
    return torch.where(inside, alpha, 1.0)


def model_call(executor, x: Tensor, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conds):
    """APPLY_MODEL: find the adapter of this clone and device, and open the state of the call."""
    base_model = executor.class_obj
    transformer_options = transformer_options.copy()
    adapter = base_model.current_patcher.get_additional_models_with_key(PATCH_KEY)[0].model
    clips = len(transformer_options["cond_or_uncond"])
    frames = x.shape[0] // clips
    window = transformer_options.get("context_window")
    if window is None:
        lead, numbers, total_frames = (), tuple(range(frames)), frames
    else:
        anchor = getattr(window, "causal_anchor_index", None)
        lead = () if anchor is None or anchor < 0 else (anchor,)
        numbers, total_frames = (*lead, *window.index_list), window.total_frames
    settings = conds.get(COND_ALPHAS) or AlphaSettings()
    tokens, negative = conds.get(COND_TOKENS), ()
    if isinstance(tokens, ClipTokens):
        tokens, negative = tokens.tokens, tokens.negative
    strengths = transformer_options[SETTINGS]
    call = Call(
        adapter=adapter,
        strengths=strengths,
        unet=base_model.diffusion_model,
        clips=clips,
        frames=frames,
        window=numbers,
        total_frames=total_frames,
        cache=transformer_options.get(RUN_CACHE) or NoCache,
        alphas=settings,
        slider_text=_slider(settings.alpha_text, settings, base_model.model_sampling, transformer_options),
        slider_image=_slider(settings.alpha_image, settings, base_model.model_sampling, transformer_options),
        anchored=bool(lead),
        tokens=tokens,
        negative=negative,
        fps=transformer_options.get(FPS),
        latents=conds.get(COND_LATENTS),
        scale_latent=base_model.process_latent_in,
        owned_attention=frozenset(_owned_attention(transformer_options)),
    )
    # Read back from the device here, not around the UNet: there it would break a compiled graph.
    patches = transformer_options.get("patches", {}).get("attn2_patch", [])
    if call.owned_attention and patches == [one_prompt_row]:
        call.one_prompt_per_clip = call.cache.get(
            ("one prompt", tuple(transformer_options.get("uuids", ())), numbers, c_crossattn.shape),
            lambda: _same_rows(c_crossattn, clips),
        )
    transformer_options[CALL] = call
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)


def _owned_attention(transformer_options: dict) -> list[tuple[str, int, int]]:
    replaced = transformer_options.get("patches_replace", {}).get("attn2", {})
    ours = [key for key, fn in replaced.items() if type(fn) is WeighedCrossAttention and fn.previous is None]
    return [attention_site(key[:2], key[2]) for key in ours]


def unet_call(executor, x: Tensor, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
    """DIFFUSION_MODEL: redo the last norm over the clip."""
    call: Call = transformer_options[CALL]
    out = executor(x, timesteps, context, y, control, transformer_options, **kwargs)
    if not call.clip_norm:
        return out
    h, call.last_output = call.last_output.to(x.dtype), None
    norm, *rest = call.unet.out
    h = clip_group_norm(norm, h, call.frames)
    for layer in rest:
        h = layer(h)
    return h


def _same_rows(context: Tensor, clips: int) -> bool:
    rows = context.unflatten(0, (clips, -1))
    return bool((rows == rows[:, :1]).all())


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: sampling_run,
    WrappersMP.PREPARE_SAMPLING: plan_memory,
    WrappersMP.APPLY_MODEL: model_call,
    WrappersMP.DIFFUSION_MODEL: unet_call,
}
