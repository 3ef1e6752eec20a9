"""A base of one's own to train on: a copy of the UNet of a MODEL, with the adapter that is on it taken apart into weights."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..adapter import AdapterConfig
from .attach import adapter_of
from .checks import prediction_of
from .names import PATCH_KEY


@dataclass
class TrainingBase:
    """`patcher`: a copy of the plain base that nothing else uses. `weights`, `differences`, `config`: of the adapter that was on
    the MODEL, under the names of its file (`differences` by LDM key), or empty and None."""

    patcher: ModelPatcher
    weights: dict[str, Tensor] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    config: AdapterConfig | None = None

    @property
    def unet(self) -> UNetModel:
        return self.patcher.model.diffusion_model

    @property
    def prediction(self) -> str:
        return prediction_of(self.patcher)

    @property
    def latent_scale(self) -> float:
        return self.patcher.model.latent_format.scale_factor


def training_base(model: ModelPatcher) -> TrainingBase:
    """Copy the base of `model`, in ordinary tensors on the CPU, also when ComfyUI made it in inference mode.

    Raises ValueError for a MODEL that is no Stable Diffusion UNet of 4 channels, or that carries changes of its weights (a LoRA).
    """
    unet = getattr(model.model, "diffusion_model", None)
    if not isinstance(unet, UNetModel) or unet.num_classes is not None:
        raise ValueError(
            f"an adapter can be trained on a UNet of Stable Diffusion 1.5 or 2.1 shape, this MODEL is a {type(unet).__name__}"
        )
    if unet.in_channels != unet.out_channels:
        raise ValueError(
            f"the UNet of this MODEL takes {unet.in_channels} channels and gives {unet.out_channels}: an inpainting model cannot "
            "be trained on, load its plain base"
        )
    adapter = adapter_of(model)
    differences = dict(adapter.attachments.get(PATCH_KEY, {})) if adapter is not None else {}
    ours = {f"diffusion_model.{key}" for key in differences}
    changed = [key for key, patches in model.patches.items() if len(patches) > (key in ours)]
    if changed:
        raise ValueError(
            f"MODEL carries changes of its weights ({len(changed)} of them, such as a LoRA's): train on the plain base and put the "
            "LoRA behind the adapter"
        )
    # Weights in memory carry patches while a model is loaded.
    comfy.model_management.unload_all_models()
    with torch.inference_mode(False), torch.no_grad():
        base = _own_copy(model)
        for name, value in model.object_patches.items():
            comfy.utils.set_attr(base, name, copy.deepcopy(value))
        device = torch.device("cpu")
        patcher = ModelPatcher(base.to(device), device, device)
        if adapter is None:
            return TrainingBase(patcher)
        weights = {key: value.to("cpu", torch.float32, copy=True) for key, value in adapter.model.state_dict().items()}
        differences = {key: value.to("cpu", torch.float32, copy=True) for key, value in differences.items()}
        return TrainingBase(patcher, weights, differences, adapter.model.config)


def _own_copy(model: ModelPatcher) -> torch.nn.Module:
    if model.is_dynamic():
        try:
            return model.clone(disable_dynamic=True).model
        except RuntimeError as error:
            raise ValueError("MODEL cannot be copied for training: load it with Load (MagDiff) Checkpoint") from error
    # Without the patcher that used it last, which leads to other models. The config is only read, and cannot be copied.
    config = model.model.model_config
    return copy.deepcopy(model.model, {id(model.model.current_patcher): None, id(config): config})


def fingerprint(*modules: torch.nn.Module) -> str:
    """16 hex digits that tell weights apart: names, shapes and the ends of every tensor."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            ends = torch.cat((value.flatten()[:8], value.flatten()[-8:])).to("cpu", torch.float32)
            digest.update(f"{name}{tuple(value.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]
