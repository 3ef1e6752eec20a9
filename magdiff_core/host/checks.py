"""Checks that stop a run with a clear message before anything expensive starts."""

from __future__ import annotations

import logging

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel, VideoResBlock
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EDM, EPS, V_PREDICTION, X0
from torch import Tensor

from ..adapter import AdapterConfig, MagDiffAdapter
from ..config import ALL_FRAMES, POOLED_LAYER, SAME_PICTURE, TOKENS_OF_PICTURE
from ..temporal.kinds import AFTER_LAYER
from .call import PartStrengths
from .conds import EDIT, SubjectLatents, SubjectTokens, attached
from .names import PATCH_KEY, SETTINGS

_log = logging.getLogger("magdiff")

_PREDICTIONS = ((EDM, "EDM"), (V_PREDICTION, "v"), (X0, "x0"), (EPS, "eps"))
"""Prediction in words by core's class; those that inherit from others come first."""


def prediction_of(model: ModelPatcher) -> str:
    """What `model` predicts: "eps", "v", or core's name for anything else. Honours ModelSamplingDiscrete."""
    sampling = model.get_model_object("model_sampling")
    return next((name for kind, name in _PREDICTIONS if isinstance(sampling, kind)), type(sampling).__name__)


def _module(unet: UNetModel, site: str, kind: type | tuple[type, ...]) -> torch.nn.Module:
    try:
        module = unet.get_submodule(site)
    except AttributeError:
        module = None
    if not isinstance(module, kind):
        raise ValueError(
            f"this adapter does not fit this model: it has weights for {site}, which the model lacks. "
            "Load the base that the adapter was trained on"
        )
    return module


def _same_width(site: str, what: str, adapter: int, base: int) -> None:
    if adapter != base:
        raise ValueError(
            f"this adapter does not fit this model: {what} at {site} is {adapter} wide, the model {base}. "
            "Load the base that the adapter was trained on"
        )


def check_base(model: ModelPatcher, adapter: MagDiffAdapter) -> None:
    """Raise ValueError when `adapter` was not made for the base of `model`: class, prediction, scale, widths."""
    base_model, config = model.model, adapter.config
    unet = base_model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"Apply MagDiff Adapter needs a UNet of Stable Diffusion 1.5 or 2.1 shape, this MODEL is a {type(unet).__name__}"
        )
    if any(isinstance(layer, (SpatialVideoTransformer, VideoResBlock)) for layer in unet.modules()):
        raise ValueError("this MODEL has temporal layers of its own (Stable Video Diffusion): load an SD1.5 or SD2.1 checkpoint")
    prediction = prediction_of(model)
    if prediction != config.prediction:
        raise ValueError(
            f"the adapter was trained for {config.prediction} prediction, this MODEL predicts {prediction}: load {config.base}. "
            "If core took the checkpoint for the wrong kind, put ModelSamplingDiscrete before Apply MagDiff Adapter"
        )
    scale = base_model.latent_format.scale_factor
    if abs(scale - config.latent_scale) > 1e-4 * config.latent_scale:
        raise ValueError(
            f"the adapter was trained on latents scaled by {config.latent_scale}, this MODEL scales by {scale}: load {config.base}"
        )
    blocks = (layer for layer in unet.modules() if isinstance(layer, BasicTransformerBlock))
    text_width = next((block.attn2.to_k.in_features for block in blocks), 0)
    if config.text_width not in (0, text_width):
        # The streams of SD1.5 and SD2.1 are equally wide: nothing else would tell one from the other.
        names = {768: "SD1.5", 1024: "SD2.1", 2048: "SDXL"}
        raise ValueError(
            f"the adapter was trained on {config.base}, whose text is {config.text_width} wide; this MODEL reads {text_width} "
            f"({names.get(text_width, 'another base')}): load {config.base}"
        )
    if adapter.temporal is not None:
        for site in adapter.temporal.conv.sites:
            width = adapter.temporal.conv.find(site).layers[0].norm.num_channels
            _same_width(site, "Temp-Conv", width, _module(unet, site, ResBlock).out_channels)
        for site in adapter.temporal.attn.sites:
            width = adapter.temporal.attn.find(site).to_out.in_features
            _same_width(site, "Temp-Attn", width, _block_width(unet, site))
        for kind, site in adapter.temporal.after_sites():
            layer = adapter.temporal.get_submodule(kind).find(site)
            _same_width(site, AFTER_LAYER[kind].words, layer.channels, _layer_width(unet, site))
        if adapter.temporal.fps_embedding is not None:
            width = adapter.temporal.fps_embedding[2].out_features
            _same_width("time_embed", "the frame rate", width, unet.time_embed[2].out_features)
    if adapter.apa is not None:
        for site in adapter.apa.sites:
            _same_width(site, "the image stream", adapter.apa.find(site).to_k_image.out_features, _block_width(unet, site))
    if adapter.hfa is not None:
        conv_z = adapter.hfa.conv_z
        _same_width("input_blocks.0.0", "the subject branch", conv_z.out_channels, unet.model_channels)
        latent_channels = conv_z.in_channels - int(adapter.hfa.affinity)
        _same_width("the latent", "the subject branch", latent_channels, base_model.latent_format.latent_channels)


def _layer_width(unet: UNetModel, site: str) -> int:
    layer = _module(unet, site, (ResBlock, SpatialTransformer, torch.nn.Conv2d))
    return layer.in_channels if isinstance(layer, SpatialTransformer) else layer.out_channels


def _block_width(unet: UNetModel, site: str) -> int:
    block = _module(unet, site, BasicTransformerBlock)
    return block.n_heads * block.d_head


def check_other_handlers(transformer_options: dict) -> None:
    """Raise ValueError when another pack already runs ResBlocks or transformers: core would silently use only the first."""
    for kind, handler in transformer_options.get("patches", {}).get("forward_timestep_embed_patch", []):
        if issubclass(ResBlock, kind) or issubclass(SpatialTransformer, kind):
            raise ValueError(
                f"another node already replaced how this MODEL runs its {kind.__name__} layers "
                f"({handler.__module__}): apply the MagDiff adapter to a MODEL without it"
            )


def check_run(model_patcher: ModelPatcher, conds: dict[str, list[dict]], noise: Tensor, latent_image: Tensor) -> None:
    """Raise ValueError when what is attached to `conds` (as core converted them) cannot run with this noise `[F, C, h, w]`."""
    adapter: MagDiffAdapter = model_patcher.get_additional_models_with_key(PATCH_KEY)[0].model
    strengths: PartStrengths = model_patcher.model_options["transformer_options"][SETTINGS]
    for name, tensor in (("the noise", noise), ("the LATENT", latent_image)):
        check_finite(name, tensor)
    if adapter.temporal is not None and strengths.temporal > 0.0:
        check_clip_length(noise.shape[0], adapter.config, model_patcher.model_options)
    check_length(model_patcher, adapter, strengths, noise.shape[0])
    for side, items in conds.items():
        for item in items:
            if "cross_attn" in item:
                check_finite(f"the {side} prompt", item["cross_attn"])
            ours = attached(item.get("model_conds", {}))
            if "tokens" in ours and strengths.image_stream > 0.0:
                check_tokens(ours["tokens"], adapter, noise.shape[0])
                say_shared_tokens(adapter, _frames_at_once(model_patcher, noise.shape[0]))
            if "latents" in ours and strengths.pyramid > 0.0:
                check_latents(ours["latents"], adapter, noise.shape)


def check_clip_length(frames: int, config: AdapterConfig, model_options: dict) -> None:
    """Raise ValueError when more frames would run at once than the layers along time know positions for."""
    windows = model_options.get("context_handler")
    together = frames
    if windows is not None and frames > windows.context_length:
        together = windows.context_length + int(getattr(windows, "causal_window_fix", False))
    if 0 < config.max_frames < together:
        raise ValueError(
            f"{together} frames would run at once, these layers along time ({config.trained_from}) know {config.max_frames}: make "
            f"a shorter clip, or put Context Windows before the sampler with a context length below {config.max_frames}"
        )


def check_length(model_patcher: ModelPatcher, adapter: MagDiffAdapter, strengths: PartStrengths, frames: int) -> None:
    """Raise ValueError for more frames at once than the adapter's layers along time know."""
    longest, frames = adapter.config.max_frames, _frames_at_once(model_patcher, frames)
    if longest and frames > longest and strengths.temporal > 0.0:
        raise ValueError(
            f"the clip has {frames} frames, the layers along time of this adapter were trained with at most {longest}: make a "
            f"shorter clip, or put Context Windows with a length of up to {longest} before the sampler"
        )


def _frames_at_once(model_patcher: ModelPatcher, frames: int) -> int:
    """Frames of one call of the UNet: those of the clip, or of one context window."""
    window = model_patcher.model_options.get("context_handler")
    return frames if window is None else min(frames, window.context_length)


def say_shared_tokens(adapter: MagDiffAdapter, frames: int) -> None:
    """Log a warning when the picture's tokens cannot be shared out among so many frames."""
    share, projector = adapter.config.tokens_per_frame, adapter.projector
    if share and projector is not None and projector.latents.shape[1] != frames * share:
        _log.warning(
            "this adapter (%s) has image tokens for %d frames, %d are made at once: every frame reads all tokens, as in the "
            "released code, which it was not trained for. Make %d frames, or use Context Windows of that length",
            adapter.config.trained_from,
            projector.latents.shape[1] // share,
            frames,
            projector.latents.shape[1] // share,
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError when `tensor` holds NaN or infinity."""
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite: look at the node that made it")


def check_tokens(tokens: SubjectTokens, adapter: MagDiffAdapter, frames: int) -> None:
    """Raise ValueError for tokens of another width or count, or an adapter without an image stream."""
    if adapter.apa is None:
        raise ValueError(
            "APA Conditioning is wired, but the adapter has no image stream (apa.*): use an adapter that has one, "
            "or take the node out"
        )
    layer = adapter.config.image_encoder.layer
    if layer not in tokens.layers:
        raise ValueError(
            f"the adapter reads the {layer} layer of the image encoder, clip_vision_output holds {', '.join(tokens.layers)}"
        )
    if adapter.projector is None:
        width = adapter.apa.find(adapter.apa.sites[0]).to_k_image.in_features
        if tokens.layers[layer].shape[-1] != width:
            raise ValueError(
                f"the adapter has an image stream but no projector (projector.*), so tokens {tokens.layers[layer].shape[-1]} wide "
                f"cannot be brought to {width}: use the whole checkpoint that the adapter comes from"
            )
    check_token_width(tokens.layers[layer].shape[-1], adapter.config)
    check_finite("clip_vision_output", tokens.layers[layer])
    if adapter.config.negative_picture != SAME_PICTURE and not tokens.negative_entry:
        _log.warning(
            "the negative reads the same picture as the positive, this adapter (%s) was trained with another: use Encode Subject "
            "Tokens in the place of CLIP Vision Encode",
            adapter.config.trained_from,
        )
    entries = tokens.picture_entries if adapter.config.image_tokens == TOKENS_OF_PICTURE else tokens.frame_entries
    entries(frames, range(frames))


def check_token_width(width: int, config: AdapterConfig) -> None:
    """Raise ValueError when the image encoder's tokens are not as wide as the adapter's projector expects."""
    expected = config.image_encoder.width
    if width != expected:
        known = {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"}
        if config.image_encoder.layer == POOLED_LAYER:
            known = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}
        raise ValueError(
            f"the image encoder gives tokens {width} wide ({known.get(width, 'unknown model')}), the adapter was trained with "
            f"{expected} ({known.get(expected, 'its own encoder')}): load that image encoder"
        )


def check_latents(latents: SubjectLatents, adapter: MagDiffAdapter, noise_shape: torch.Size) -> None:
    """Raise ValueError for subject latents of another clip length or size, or an adapter without a subject branch."""
    if adapter.hfa is None:
        raise ValueError(
            "HFA Pyramid Encode is wired, but the adapter has no subject branch (hfa.*): use an adapter that has one, "
            "or take the node out"
        )
    frames, channels, height, width = noise_shape
    if latents.pictures > 1 and adapter.config.subject_frames != ALL_FRAMES:
        raise ValueError(
            f"HFA Pyramid Encode got {latents.pictures} pictures (first and last frame), this adapter starts a clip from one: "
            "give it one picture, or choose mode edit"
        )
    if latents.frames != frames:
        source = "the frames of the subject clip" if latents.mode == EDIT else "the frames widget of HFA Pyramid Encode"
        raise ValueError(
            f"the LATENT has {frames} frames, the conditioning {latents.frames} ({source}): "
            "wire the LATENT that HFA Pyramid Encode returns. One run makes one clip, queue several for several"
        )
    for level in latents.levels:
        check_finite("the subject latent of HFA Pyramid Encode", level)
    base = latents.levels[0].shape
    if tuple(base[-3:]) != (channels, height, width):
        raise ValueError(
            f"the LATENT is {width} x {height} with {channels} channels, the subject latent {base[-1]} x {base[-2]} with "
            f"{base[-3]}: wire the LATENT that HFA Pyramid Encode returns, and the VAE of this model"
        )
