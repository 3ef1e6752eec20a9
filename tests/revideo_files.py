"""A small ReVideo checkpoint in the published layout: the parity file's weights, with room for SVD's own vector of numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIXTURE = Path(__file__).parent / "fixtures" / "revideo_sampler.safetensors"
CLIP_FRAMES = 3
METADATA = {"num_head_channels": "16", "clip_frames": str(CLIP_FRAMES)}
NUMBERS = 768


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


def save(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    """Write a safetensors file; all of `weights()` by default."""
    save_file(weights() if tensors is None else tensors, path, {**METADATA, **metadata})
    return path
