"""A tiny UNet of Stable Diffusion's layout, built from ComfyUI's own classes, and random adapters that fit it."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import sd21_files
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

CONTEXT = 32
TOKEN_WIDTH = 32
IMAGE_WIDTH = 24
UNET = {**sd21_files.UNET, "model_channels": 32, "num_head_channels": 16, "context_dim": CONTEXT}


class TinyModel(comfy.supported_models_base.BASE):
    unet_config = {}
    unet_extra_config = {}
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {}
    prediction = comfy.model_base.ModelType.EPS

    def model_type(self, state_dict, prefix=""):
        return self.prediction


def tiny_model(prediction="eps", dtype=torch.float32, seed=0, compute=None, **changes):
    """A patcher around a random UNet, computing in `compute` where that is not `dtype`; `changes` to its configuration."""
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        config = TinyModel({**UNET, **changes})
        config.prediction = {"eps": comfy.model_base.ModelType.EPS, "v": comfy.model_base.ModelType.V_PREDICTION}[prediction]
        config.unet_config["dtype"] = dtype
        config.manual_cast_dtype = compute
        config.custom_operations = comfy.ops.manual_cast
        model = comfy.model_base.BaseModel(config, config.prediction, device="cpu")
        randomise(model.diffusion_model)
        model.diffusion_model.to(dtype)
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def randomise(module: torch.nn.Module) -> None:
    """Random weights with no layer at zero, so that every path shows in the output."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
        else:
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def adapter_weights(model, seed=1, pyramid=True, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A random adapter for `model` in the file's layout, every part present."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=None):
        fan_in = 1
        for n in shape[1:]:
            fan_in *= n
        return (torch.randn(*shape, generator=generator) * (scale or fan_in**-0.5)).to(dtype)

    unet, sd = model.model.diffusion_model, {}
    for site, layer in unet.named_modules():
        if isinstance(layer, ResBlock):
            c = layer.out_channels
            for i in range(4):
                key = f"temporal.conv.{site}.layers.{i}"
                sd |= {f"{key}.norm.weight": 1 + random(c, scale=0.1), f"{key}.norm.bias": random(c, scale=0.1)}
                sd |= {f"{key}.conv.weight": random(c, c, 3, 1), f"{key}.conv.bias": random(c, scale=0.1)}
        if isinstance(layer, BasicTransformerBlock):
            c = layer.n_heads * layer.d_head
            key = f"temporal.attn.{site}"
            sd |= {f"{key}.norm.weight": 1 + random(c, scale=0.1), f"{key}.norm.bias": random(c, scale=0.1)}
            sd |= {f"{key}.to_qkv.weight": random(3 * c, c), f"{key}.to_out.weight": random(c, c)}
            sd |= {f"{key}.to_out.bias": random(c, scale=0.1)}
            key = f"apa.{site}"
            sd |= {f"{key}.to_k_image.weight": random(c, TOKEN_WIDTH), f"{key}.to_v_image.weight": random(c, TOKEN_WIDTH)}
            sd |= {f"{key}.alpha_text": 1 + random(1, scale=0.2), f"{key}.alpha_image": 1.5 + random(1, scale=0.2)}
    sd["hfa.conv_z.weight"] = random(unet.model_channels, 4, 3, 3)
    if pyramid:
        for level in (1, 2):
            key = f"hfa.level.{level}"
            sd |= {f"{key}.conv_in.weight": random(8, 4, 3, 3), f"{key}.conv_in.bias": random(8, scale=0.1)}
            sd |= {f"{key}.conv_out.weight": random(4, 8, 3, 3), f"{key}.conv_out.bias": random(4, scale=0.1)}
    width, heads_width = 32, 32
    sd["projector.latents"] = random(1, 4, width, scale=1.0)
    sd |= {"projector.proj_in.weight": random(width, IMAGE_WIDTH), "projector.proj_in.bias": random(width, scale=0.1)}
    for norm in ("layers.0.0.norm1", "layers.0.0.norm2", "layers.0.1.0", "norm_out"):
        sd |= {f"projector.{norm}.weight": 1 + random(width, scale=0.1), f"projector.{norm}.bias": random(width, scale=0.1)}
    sd |= {"projector.layers.0.0.to_q.weight": random(heads_width, width)}
    sd |= {"projector.layers.0.0.to_kv.weight": random(2 * heads_width, width)}
    sd |= {"projector.layers.0.0.to_out.weight": random(width, heads_width)}
    sd |= {"projector.layers.0.1.1.weight": random(4 * width, width), "projector.layers.0.1.3.weight": random(width, 4 * width)}
    sd |= {"projector.proj_out.weight": random(TOKEN_WIDTH, width), "projector.proj_out.bias": random(TOKEN_WIDTH, scale=0.1)}
    return sd
