"""The base of ReVideo in ComfyUI: an SVD UNet of the published or any other size."""

from __future__ import annotations

import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .revideo_trunk import HEAD_CHANNELS

WRAPPER_KEY = "magdiff_video_frames"


class VideoModel(comfy.supported_models.SVD_img2vid):
    """SVD of any size. Not in ComfyUI's list of models: nothing else is ever taken for it."""

    unet_extra_config = {"num_heads": -1, "attn_precision": torch.float32}
    model_class = comfy.model_base.SVD_img2vid

    def get_model(self, state_dict: dict, prefix: str = "", device=None) -> comfy.model_base.SVD_img2vid:
        return self.model_class(self, device=device)


def video_model(
    unet: dict[str, Tensor],
    head_channels: int = HEAD_CHANNELS,
    kind: type[VideoModel] = VideoModel,
    dtype: torch.dtype | None = None,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """A MODEL from SVD weights in LDM names without prefix.

    `head_channels`: width of an attention head, which no weight tells. `dtype`: to compute in; ComfyUI's choice by default.
    Raises ValueError when the weights are no UNet with temporal layers, or do not fill it.
    """
    config = comfy.model_detection.detect_unet_config(unet, "")
    if config is None or not config.get("use_temporal_attention"):
        raise ValueError("the UNet of this file has no temporal layers: it is not that of Stable Video Diffusion")
    model_config = kind({**config, "num_head_channels": head_channels})
    device = comfy.model_management.get_torch_device()
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(unet), weight_dtype=comfy.utils.weight_dtype(unet)
        )
    model_config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    offload = comfy.model_management.unet_offload_device()
    # Looked up at call time: ComfyUI rebinds it when memory is managed dynamically.
    kind_of_patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    model = model_config.get_model(unet, device=offload)
    wanted, given = (
        {key: tuple(value.shape) for key, value in weights.items()} for weights in (model.diffusion_model.state_dict(), unet)
    )
    other = sorted(key for key in {**wanted, **given} if key not in given or (key in wanted and wanted[key] != given[key]))
    if other:
        raise ValueError(
            f"the UNet of this file is not whole: {len(other)} weights are missing or of another shape, such as {other[0]}"
        )
    patcher = kind_of_patcher(model, load_device=device, offload_device=offload)
    model.load_model_weights(dict(unet), "", assign=patcher.is_dynamic())
    return patcher


def count_frames_of_each_call(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` whose temporal layers take the frames of each call for a clip.

    Core tells them the length of a context window, but with its causal fix later windows hold one frame more.
    """
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, _count_frames)
    return model


def _count_frames(executor, x: Tensor, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conds):
    conds["num_video_frames"] = x.shape[0] // len(transformer_options["cond_or_uncond"])
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)
