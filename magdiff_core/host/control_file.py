"""Load a control branch, alone or with everything else that the released checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..weights.foreign import describe
from ..weights.revideo import (
    CLIP_FRAMES,
    UNET_PREFIX,
    ReVideoParts,
    control_prefix,
    read_control,
    released_parts,
)
from .lightning_file import load_checkpoint_tensors
from .loaded_checkpoint import LoadedCheckpoint
from .revideo_base import count_frames_of_each_call, video_model
from .revideo_image_encoder import HEAD_CHANNELS as IMAGE_HEAD_CHANNELS
from .revideo_image_encoder import build_image_encoder
from .revideo_model import build_control
from .revideo_trunk import HEAD_CHANNELS


@dataclass(frozen=True)
class LoadedControl:
    """A control branch in a patcher of its own: the value of MAGDIFF_CONTROL.

    `clip_frames`: frames of the clips that it was trained on.
    """

    patcher: ModelPatcher
    clip_frames: int = CLIP_FRAMES


def load_revideo(path: str) -> tuple[LoadedCheckpoint, LoadedControl]:
    """MODEL, VAE and CLIP_VISION (None where the file lacks one) and the control branch of a ReVideo file.

    Metadata entries `num_head_channels`, `image_encoder_head_channels` and `clip_frames` of a safetensors file are honoured; the
    released file has none.
    Raises ValueError, naming the file, for one without a control branch, a damaged one, or one of which a part is not whole.
    """
    parts, metadata = _read(path)
    try:
        model = _model(parts, metadata)
        control = _control(parts, metadata)
        vae = _vae(parts)
        clip_vision = _image_encoder(parts, metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    control.patcher.cached_patcher_init = (_reload_control, (path,))
    if model is not None:
        model.cached_patcher_init = (_reload_model, (path,))
        model = count_frames_of_each_call(model)
    return LoadedCheckpoint(model, None, vae, clip_vision), control


def load_control(path: str, state_dict: dict[str, Tensor], metadata: dict[str, str]) -> LoadedControl:
    """The control branch among the tensors of the file at `path`; nothing else of it.

    Raises ValueError, naming the file, when there is none or it is not whole.
    """
    if control_prefix(state_dict) is None:
        raise ValueError(f"{path} holds no ReVideo control branch: {describe(state_dict)}")
    try:
        control = _control(ReVideoParts(read_control(state_dict)), metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    control.patcher.cached_patcher_init = (_reload_control, (path,))
    return control


def _read(path: str) -> tuple[ReVideoParts, dict[str, str]]:
    state_dict, metadata = load_checkpoint_tensors(path)
    if control_prefix(state_dict) is None:
        raise ValueError(f"{path} holds no ReVideo control branch: {describe(state_dict)}")
    try:
        return released_parts(state_dict), metadata
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _head_channels(metadata: dict[str, str]) -> int:
    return int(metadata.get("num_head_channels", HEAD_CHANNELS))


def _prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def _model(parts: ReVideoParts, metadata: dict[str, str], disable_dynamic: bool = False) -> ModelPatcher | None:
    if not parts.unet:
        return None
    weights = _prefixed(parts.unet, UNET_PREFIX)
    if comfy.model_detection.model_config_from_unet(weights, UNET_PREFIX) is None:
        return video_model(parts.unet, _head_channels(metadata), disable_dynamic=disable_dynamic)
    return comfy.sd.load_state_dict_guess_config(
        weights, output_vae=False, output_clip=False, disable_dynamic=disable_dynamic
    )[0]


def _control(parts: ReVideoParts, metadata: dict[str, str], disable_dynamic: bool = False) -> LoadedControl:
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    dtype = _control_dtype(parts.control)
    patcher = kind(
        build_control({key: value.to(dtype) for key, value in parts.control.items()}, _head_channels(metadata)),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return LoadedControl(patcher, int(metadata.get("clip_frames", CLIP_FRAMES)))


def _control_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """What core would keep a UNet of this size in, so that no weight is cast at every step; 8 bits are too few for this branch."""
    stored = comfy.utils.weight_dtype(weights)
    dtype = comfy.model_management.unet_dtype(model_params=comfy.utils.calculate_parameters(weights), weight_dtype=stored)
    return dtype if dtype.itemsize >= 2 else stored


def _vae(parts: ReVideoParts) -> comfy.sd.VAE | None:
    if not parts.autoencoder:
        return None
    try:
        return comfy.sd.VAE(sd=dict(parts.autoencoder))
    except RuntimeError as error:
        raise ValueError(f"the file's autoencoder is not that of Stable Video Diffusion ({error})") from error


def _image_encoder(parts: ReVideoParts, metadata: dict[str, str]) -> ClipVisionModel | None:
    if not parts.image_encoder:
        return None
    return build_image_encoder(parts.image_encoder, int(metadata.get("image_encoder_head_channels", IMAGE_HEAD_CHANNELS)))


def _reload_model(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    return count_frames_of_each_call(_model(*_read(path), disable_dynamic))


def _reload_control(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    return _control(*_read(path), disable_dynamic).patcher
