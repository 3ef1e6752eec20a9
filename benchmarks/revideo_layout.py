"""A ReVideo checkpoint in the published layout, of the published or any other size: random weights, written without holding them.

Left out is what no loader reads: the second copy of the image autoencoder, and what is left of the image encoder's text tower.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from magdiff_core.host import session

session.start()

from comfy.ldm.modules.diffusionmodules.model import Encoder  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.modules.temporal_ae import VideoDecoder  # noqa: E402

from magdiff_core.host.revideo_model import ReVideoControlModel  # noqa: E402
from magdiff_core.host.revideo_trunk import trunk_config  # noqa: E402
from magdiff_core.motion.encoders import WIDTHS  # noqa: E402
from magdiff_core.weights.revideo import (  # noqa: E402
    AUTOENCODER_PREFIX,
    CONTROL_PREFIX,
    IMAGE_ENCODER_PREFIX,
    UNET_PREFIX,
)

SVD_UNET = {
    "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "context_dim": 1024,
    "adm_in_channels": 768, "num_classes": "sequential", "num_heads": -1, "num_head_channels": 64,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False, "use_temporal_resblock": True,
    "use_temporal_attention": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
    "merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1],
}  # fmt: skip
# ComfyUI builds SVD's autoencoder in this size only.
AUTOENCODER = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
_TRUNK_PARTS = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
_PUBLISHED = (
    # (ours, published)
    ("content_encoder.", "mask_embedding."),
    ("motion_encoder.", "controlnet_cond_embedding."),
    ("safm.weight_encoder.", "weight_embedding."),
    ("safm.", "weight_embedding."),
    ("zero_conv_middle.", "controlnet_mid_block.0."),
    ("trunk.", ""),
)
BYTES = 2
"""Of a weight: half precision."""
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Size:
    """`unet`: arguments of ComfyUI's UNet. `encoder_*`: of the image encoder, whose output is as wide as the UNet's context."""

    unet: Mapping[str, object]
    encoder_width: int = 1280
    encoder_layers: int = 32
    encoder_patch: int = 14
    encoder_patches: int = 256
    encoder_head_channels: int = 80

    @property
    def metadata(self) -> dict[str, str]:
        """What no weight tells; the published file needs none of it."""
        return {
            "num_head_channels": str(self.unet["num_head_channels"]),
            "image_encoder_head_channels": str(self.encoder_head_channels),
        }


PUBLISHED = Size(SVD_UNET)


def published_name(ours: str) -> str:
    """Published name, without its prefix, of a weight of the control branch."""
    for own, published in _PUBLISHED:
        if ours.startswith(own):
            return published + ours.removeprefix(own)
    number, _, tensor = ours.removeprefix("zero_convs.").partition(".")
    return f"controlnet_down_blocks.{number}.0.{tensor}"


def sampled_shapes(size: Size = PUBLISHED) -> dict[str, tuple[int, ...]]:
    """Published key -> shape of UNet and control branch: all that a sampling step needs. No memory is taken."""
    unet = UNetModel(**size.unet, device="meta").state_dict()
    config = trunk_config(
        {key: value for key, value in unet.items() if key.startswith(_TRUNK_PARTS)}, size.unet["num_head_channels"]
    )
    control = ReVideoControlModel(config, WIDTHS).state_dict()
    shapes = {UNET_PREFIX + key: value.shape for key, value in unet.items()}
    shapes |= {CONTROL_PREFIX + published_name(key): value.shape for key, value in control.items()}
    return {key: tuple(shape) for key, shape in shapes.items()}


def whole_shapes(size: Size = PUBLISHED) -> dict[str, tuple[int, ...]]:
    """`sampled_shapes`, image encoder and autoencoder."""
    with torch.device("meta"):
        parts = {"encoder": Encoder(**AUTOENCODER), "decoder": VideoDecoder(**AUTOENCODER, video_kernel_size=[3, 1, 1], alpha=0.0)}
    shapes = sampled_shapes(size)
    for name, part in parts.items():
        shapes |= {f"{AUTOENCODER_PREFIX}{name}.{key}": tuple(value.shape) for key, value in part.state_dict().items()}
    return shapes | {f"{IMAGE_ENCODER_PREFIX}visual.{key}": shape for key, shape in _image_encoder(size).items()}


def _image_encoder(size: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of an OpenCLIP picture tower."""
    width, wide = size.encoder_width, 4 * size.encoder_width
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (size.encoder_patches + 1, width),
        "proj": (width, size.unet["context_dim"]),
        "conv1.weight": (width, 3, size.encoder_patch, size.encoder_patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer in range(size.encoder_layers):
        block = f"transformer.resblocks.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, outputs, inputs in (("attn.out_proj", width, width), ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide)):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
    return shapes


def write_random(path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str], seed: int = 0) -> None:
    """Write a safetensors file of random half-precision weights, one tensor after the other, under a name of its own until it is
    whole. Values keep the size of what goes through them.

    Raises OSError, with numbers, when the disk has too little room.
    """
    sizes = {key: BYTES * math.prod(shape) for key, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes.values()), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"{path} needs {needed >> 20} MiB, {path.parent} has {free >> 20}: name another folder with --files")
    header, start = {"__metadata__": dict(metadata)}, 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + sizes[key]]}
        start += sizes[key]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key, shape in shapes.items():
                scale, middle = _distribution(key, shape)
                for begin in range(0, math.prod(shape), _BLOCK):
                    count = min(_BLOCK, math.prod(shape) - begin)
                    block = torch.randn(count, generator=generator).mul_(scale).add_(middle)
                    file.write(block.half().numpy().tobytes())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _distribution(key: str, shape: Sequence[int]) -> tuple[float, float]:
    """Standard deviation and mean: layers over their inputs, norms near 1, biases near 0."""
    if len(shape) > 1:
        return math.prod(shape[1:]) ** -0.5, 0.0
    return 0.05, 1.0 if key.endswith("weight") else 0.0
