"""A small ReVideo checkpoint in the published layout: the parity file's weights, with room for SVD's own vector of numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sd21_files import VAE

FIXTURE = Path(__file__).parent / "fixtures" / "revideo_sampler.safetensors"
CLIP_FRAMES = 3
METADATA = {"num_head_channels": "16", "clip_frames": str(CLIP_FRAMES), "image_encoder_head_channels": "8"}
NUMBERS = 768
CONTEXT = 16
ENCODER_WIDTH, ENCODER_LAYERS, PATCH, PATCHES = 16, 2, 8, 16


@lru_cache(1)
def weights() -> dict[str, torch.Tensor]:
    """Published names with their prefixes; UNet and control branch."""
    prefixes = {"B.unet.": "model.diffusion_model.", "B.ctrl.": "model.ctrlnet_model."}
    made = {}
    for key, value in load_file(FIXTURE).items():
        for given, published in prefixes.items():
            if key.startswith(given):
                made[published + key.removeprefix(given)] = value.float()
    generator = torch.Generator().manual_seed(3)
    for prefix in prefixes.values():
        key = f"{prefix}label_emb.0.0.weight"
        made[key] = torch.randn(made[key].shape[0], NUMBERS, generator=generator) / NUMBERS**0.5
    return made


def image_encoder() -> dict[str, torch.Tensor]:
    """Random weights of an OpenCLIP picture tower in a small size, with the published prefix."""
    width, wide = ENCODER_WIDTH, 4 * ENCODER_WIDTH
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (PATCHES + 1, width),
        "proj": (width, CONTEXT),
        "conv1.weight": (width, 3, PATCH, PATCH),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer in range(ENCODER_LAYERS):
        block = f"transformer.resblocks.{layer}"
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
        for name, outputs, inputs in (("attn.out_proj", width, width), ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide)):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
    return {f"conditioner.embedders.0.open_clip.model.visual.{key}": value for key, value in _random(shapes).items()}


def autoencoder() -> dict[str, torch.Tensor]:
    """Random weights of SVD's autoencoder, in its own size as ComfyUI knows no other, in half precision, with its prefix."""
    from comfy.ldm.modules.diffusionmodules.model import Encoder
    from comfy.ldm.modules.temporal_ae import VideoDecoder

    with torch.device("meta"):
        parts = {"encoder": Encoder(**VAE), "decoder": VideoDecoder(**VAE, video_kernel_size=[3, 1, 1], alpha=0.0)}
    shapes = {f"{name}.{key}": value.shape for name, part in parts.items() for key, value in part.state_dict().items()}
    return {f"first_stage_model.{key}": value.half() for key, value in _random(shapes).items()}


def _random(shapes: dict) -> dict[str, torch.Tensor]:
    """Weights that keep the size of what goes through; norms and biases near 1 and 0."""
    generator = torch.Generator().manual_seed(7)
    made = {}
    for key, shape in shapes.items():
        value = torch.randn(tuple(shape), generator=generator)
        if len(shape) > 1:
            made[key] = value / (value[0].numel() ** 0.5)
        else:
            made[key] = 0.05 * value + (1.0 if key.endswith("weight") else 0.0)
    return made


def save(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    """Write a safetensors file; all of `weights()` by default."""
    save_file(weights() if tensors is None else tensors, path, {**METADATA, **metadata})
    return path
