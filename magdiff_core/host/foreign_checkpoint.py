"""Load a whole published model of any layout that `weights.families` knows into the parts that ComfyUI's nodes take."""

from __future__ import annotations

import dataclasses
import logging

import comfy.model_base
import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..weights.checkpoint import ReadCheckpoint
from ..weights.families import read_checkpoint
from ..weights.foreign import describe
from ..weights.lvdm_settings import as_variant
from .adapter_file import adapter_patcher
from .attach import apply_adapter
from .call import PartStrengths
from .lightning_file import load_checkpoint_tensors
from .loaded_checkpoint import LoadedCheckpoint
from .revideo_image_encoder import build_image_encoder
from .schedule import sampling_of

_log = logging.getLogger("magdiff")

OPENCLIP = "transformer.resblocks."
"""How the names of a text encoder begin in OpenCLIP."""
PREDICTIONS = {"eps": comfy.model_base.ModelType.EPS, "v": comfy.model_base.ModelType.V_PREDICTION}


def load_full_checkpoint(path: str, state_dict: dict[str, Tensor] | None = None, variant: str | None = None) -> LoadedCheckpoint:
    """MODEL with the file's adapter at full strength; CLIP, VAE and image encoder where the file has them.

    `state_dict`: the tensors of `path`, where they were read before. `variant`: which of several models it is, where its weights
    do not tell (`weights.lvdm_settings.VARIANTS`).
    Raises ValueError when the file is damaged, of another layout, incomplete, or of a size that ComfyUI does not know.
    """
    released = _read(path, variant, state_dict)
    base = _base_model(released)
    base.cached_patcher_init = (_reload_base, (path, variant))
    adapter = adapter_patcher(released.adapter, released.config)
    adapter.patcher.cached_patcher_init = (_reload_adapter, (path, variant))
    clip = vae = clip_vision = None
    if released.text_encoder:
        clip = _clip(released.text_encoder)
        clip.patcher.cached_patcher_init = (_reload_clip, (path,))
    if released.vae:
        vae = _vae(released.vae)
        vae.patcher.cached_patcher_init = (_reload_vae, (path,))
    if released.image_encoder:
        clip_vision = build_image_encoder(released.image_encoder)
    if released.unused:
        kinds = sorted({key.partition(".")[0] for key in released.unused})
        _log.info("%s: %d tensors are not used (%s)", path, len(released.unused), ", ".join(kinds[:8]))
    return LoadedCheckpoint(apply_adapter(base, adapter, PartStrengths()), clip, vae, clip_vision)


def _read(path: str, variant: str | None = None, state_dict: dict[str, Tensor] | None = None) -> ReadCheckpoint:
    if state_dict is None:
        state_dict, _ = load_checkpoint_tensors(path)
    try:
        released = read_checkpoint(state_dict)
        if released is not None and variant is not None:
            released = dataclasses.replace(released, config=as_variant(released.layout, released.config, variant))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if released is None:
        raise ValueError(f"{path} holds no model of a layout that is known: {describe(state_dict)}")
    if not released.unet:
        raise ValueError(
            f"{path} ({released.layout}) adds to a base model and holds none: load a base with Load Checkpoint and put this file "
            "on it with Apply MagDiff Adapter (from models/magdiff)"
        )
    return released


def _base_model(released: ReadCheckpoint, disable_dynamic: bool = False) -> ModelPatcher:
    if comfy.model_detection.model_config_from_unet(released.unet, "") is None:
        width, context = (
            next((w.shape[side] for k, w in released.unet.items() if k.endswith(ending)), 0)
            for ending, side in (("input_blocks.0.0.weight", 0), ("attn2.to_k.weight", 1))
        )
        raise ValueError(
            f"a {released.layout} UNet of another size: {width} channels and a text width of {context}; "
            "ComfyUI knows 320 with 1024 (SD2.1) and 320 with 768 (SD1.5)"
        )
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(released.unet), disable_dynamic=disable_dynamic)
    # ComfyUI tells v prediction by the spread of one bias, which fine-tuning may have moved. The layout tells it for certain.
    prediction = PREDICTIONS[released.config.prediction]
    model, sampling = patcher.model, sampling_of(released.config)
    if model.model_type != prediction:
        model.model_type = prediction
        model.model_sampling = comfy.model_base.model_sampling(model.model_config, prediction)
    if sampling is not None:
        model.model_sampling = sampling
    return patcher


def _clip(text_encoder: dict[str, Tensor], disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """SD2.1's text encoder, as OpenCLIP or as transformers saves it; the latter has 23 layers, the last of which is read.

    ComfyUI builds 24 and reads the last but one. The missing one would hold whatever was in memory, so it is given the
    weights of the one before; nothing reads its output but the pooled vector, which an SD2.1 UNet does not take.
    """
    layers = "text_model.encoder.layers."
    weights = dict(text_encoder)
    if any(key.startswith(OPENCLIP) for key in weights):
        weights = comfy.utils.clip_text_transformers_convert(weights, "", "")
    if f"{layers}22.mlp.fc1.weight" in weights and f"{layers}23.mlp.fc1.weight" not in weights:
        weights.update({key.replace("22.", "23.", 1): w for key, w in text_encoder.items() if key.startswith(f"{layers}22.")})
    return comfy.sd.load_text_encoder_state_dicts(
        [weights],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
        disable_dynamic=disable_dynamic,
    )


def _vae(weights: dict[str, Tensor]) -> comfy.sd.VAE:
    vae = comfy.sd.VAE(sd=dict(weights))
    if vae.first_stage_model is None:
        raise ValueError(f"the file's autoencoder (vae.*, {len(weights)} tensors) is of no kind that ComfyUI knows")
    return vae


def _reload_base(path: str, variant: str | None, disable_dynamic: bool = False) -> ModelPatcher:
    return _base_model(_read(path, variant), disable_dynamic)


def _reload_adapter(path: str, variant: str | None, disable_dynamic: bool = False) -> ModelPatcher:
    released = _read(path, variant)
    return adapter_patcher(released.adapter, released.config).patcher


def _reload_clip(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    return _clip(_read(path).text_encoder, disable_dynamic).patcher


def _reload_vae(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    return _vae(_read(path).vae).patcher
