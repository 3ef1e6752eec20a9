"""ComfyUI's own UNet in the size of a parity file."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

MODEL_TYPES = {"epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION}


class SmallModel(comfy.supported_models_base.BASE):
    """A Stable Diffusion UNet of any size. Not in ComfyUI's list of models: nothing else is ever taken for it."""

    unet_extra_config = {}
    latent_format = comfy.latent_formats.SD15
    prediction = "epsilon"

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        return MODEL_TYPES[self.prediction]


def small_model(unet: dict[str, Tensor], ldm: dict, scheduler: dict) -> ModelPatcher:
    """A float32 MODEL from UNet weights in LDM names without prefix.

    ComfyUI reads the sizes from the weights; head counts, which no weight tells, come from `ldm` (arguments of an LDM UNet) and
    noise levels from `scheduler`. Raises ValueError when the weights are no UNet, do not fill it, or the scheduler is another.
    """
    config = comfy.model_detection.detect_unet_config(unet, "")
    if config is None:
        raise ValueError("ComfyUI recognises no UNet in these weights")
    config.update(num_heads=ldm.get("num_heads", -1), num_head_channels=ldm.get("num_head_channels", -1))
    if scheduler["beta_schedule"] != "scaled_linear" or scheduler["prediction_type"] not in MODEL_TYPES:
        raise ValueError(
            f"the scheduler is {scheduler['beta_schedule']} with {scheduler['prediction_type']} prediction: "
            f"only scaled_linear with {' or '.join(MODEL_TYPES)} is done"
        )
    model_config = SmallModel(config)
    model_config.prediction = scheduler["prediction_type"]
    model_config.sampling_settings = {
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "timesteps": scheduler["num_train_timesteps"],
    }
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model(unet, "")
    given = {key: value.shape for key, value in unet.items()}
    wanted = {key: value.shape for key, value in model.diffusion_model.state_dict().items()}
    if given != wanted:
        other = sorted(key for key in {**given, **wanted} if given.get(key) != wanted.get(key))
        raise ValueError(f"the weights do not fill the UNet that ComfyUI builds for them: {len(other)} differ, such as {other[0]}")
    patcher = comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    model.load_model_weights(unet, "", assign=patcher.is_dynamic())
    return patcher
