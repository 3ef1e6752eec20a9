"""Model files of Stable Diffusion 2.1's layout with random weights, small enough to make and to run in a test.

ComfyUI detects and loads them as it does the real ones: UNet of 320 channels with context 1024 and linear projections,
OpenCLIP-H text encoder, Stable Diffusion's VAE, CLIP-ViT-H image encoder. What is cut down: the UNet has two levels with
one ResBlock each. The two encoders are whole, but all their layers after the first hold zeros, which a residual layer
passes through; the files are sparse there, so that 2 GB of them cost neither time nor disk.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

CHECKPOINT = "v2-1_512-ema-pruned.safetensors"
VISION = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
ADAPTER = "magdiff-sd21-adapter.safetensors"
"""The names that the example workflows ask for."""

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": -1,
    "num_head_channels": 64,
    "context_dim": 1024,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "dims": 2,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
IMAGE_WIDTH = 1280


class Zeros:
    """A tensor of zeros that is only written down as a shape."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape


def write(path: Path, tensors: dict[str, Tensor | Zeros], metadata: dict[str, str] | None = None) -> None:
    """Write a float16 safetensors file; `Zeros` become holes in it."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)
        begin = file.tell()
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                file.seek(begin + header[name]["data_offsets"][0])
                file.write(tensor.to(torch.float16).contiguous().numpy().tobytes())


def _random(shape: tuple[int, ...], generator: torch.Generator, norm_weight: bool = False) -> Tensor:
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
    return torch.randn(shape, generator=generator) * 0.05 + norm_weight


def _of_module(module: torch.nn.Module, prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights for every parameter of `module`, which may be on the meta device."""
    norms = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm)}
    return {
        prefix + name: _random(tuple(parameter.shape), generator, name.rpartition(".")[0] in norms and name.endswith("weight"))
        for name, parameter in module.named_parameters()
    }


def _filled(shapes: dict[str, tuple[int, ...]], zero: str, generator: torch.Generator) -> dict[str, Tensor | Zeros]:
    """Random weights, but zeros in transformer layers (`zero` is the text before their number) after the first."""
    filled: dict[str, Tensor | Zeros] = {}
    for name, shape in shapes.items():
        number = name.partition(zero)[2].partition(".")[0]
        norm = "norm" in name or "layrnorm" in name or ".ln_" in name
        later = number.isdigit() and int(number) > 0
        filled[name] = Zeros(*shape) if later else _random(shape, generator, norm and name.endswith("weight"))
    return filled


def _text_encoder(generator: torch.Generator) -> dict[str, Tensor | Zeros]:
    """OpenCLIP ViT-H's text tower as Stable Diffusion 2 checkpoints hold it: 24 layers, width 1024."""
    root, width = "cond_stage_model.model.", 1024
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    for layer in range(24):
        block = f"transformer.resblocks.{layer}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        shapes |= {f"{block}mlp.c_fc.weight": (4 * width, width), f"{block}mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{block}mlp.c_proj.weight": (width, 4 * width), f"{block}mlp.c_proj.bias": (width,)}
    return {root + name: value for name, value in _filled(shapes, "resblocks.", generator).items()}


def clip_layer(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a transformer layer of CLIP as transformers names them, of either tower."""
    shapes = {}
    for norm in ("layer_norm1", "layer_norm2"):
        shapes |= {f"{prefix}{norm}.weight": (width,), f"{prefix}{norm}.bias": (width,)}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"{prefix}self_attn.{part}.weight": (width, width), f"{prefix}self_attn.{part}.bias": (width,)}
    shapes |= {f"{prefix}mlp.fc1.weight": (4 * width, width), f"{prefix}mlp.fc1.bias": (4 * width,)}
    shapes |= {f"{prefix}mlp.fc2.weight": (width, 4 * width), f"{prefix}mlp.fc2.bias": (width,)}
    return shapes


def _image_encoder(generator: torch.Generator) -> dict[str, Tensor | Zeros]:
    """CLIP-ViT-H/14's image tower as transformers names it: 32 layers, width 1280, 257 tokens."""
    width = IMAGE_WIDTH
    shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (1024, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{norm}.weight": (width,), f"vision_model.{norm}.bias": (width,)}
    for layer in range(32):
        shapes |= clip_layer(f"vision_model.encoder.layers.{layer}.", width)
    return _filled(shapes, "layers.", generator)


def make(models: Path, seed: int = 0) -> None:
    """Write the three files that the SD2.1 workflows load into ComfyUI's folder `models`.

    ComfyUI must be importable (fixture `comfy_session`).
    """
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from tiny import adapter_weights

    from magdiff_core.adapter import AdapterConfig, ImageEncoderConfig

    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init)
        vae = AutoencoderKL(embed_dim=4, ddconfig=VAE)
    model = type("Model", (), {"model": type("Base", (), {"diffusion_model": unet})})
    adapter = adapter_weights(model, seed=seed + 1)
    first = adapter["projector.proj_in.weight"]
    adapter["projector.proj_in.weight"] = _random((first.shape[0], IMAGE_WIDTH), generator)
    config = AdapterConfig(projector_heads=2, image_encoder=ImageEncoderConfig(width=IMAGE_WIDTH))

    checkpoint = models / "checkpoints" / CHECKPOINT
    vision = models / "clip_vision" / VISION
    adapter_file = models / "magdiff" / ADAPTER
    for path in (checkpoint, vision, adapter_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    parts = _of_module(unet, "model.diffusion_model.", generator) | _of_module(vae, "first_stage_model.", generator)
    write(checkpoint, {**parts, **_text_encoder(generator)})
    write(vision, _image_encoder(generator))
    write(adapter_file, adapter, config.to_metadata())
