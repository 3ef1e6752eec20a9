"""Tiny metric models of the real classes, written as files: CLIP, DINO, and a script in place of I3D and C3D."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

WORDS = 49408


class Colours(torch.nn.Module):
    """In place of I3D and C3D: the mean colour of a clip, and how it spreads."""

    def forward(self, clips: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        clips = clips.float()
        return torch.cat((clips.mean((2, 3, 4)), clips.std((2, 3, 4))), 1)


def tiny_clip():
    """A CLIP of `transformers` that reads CLIP's own vocabulary and pictures of 32 pixels."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(1)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    text = {
        **size, "num_hidden_layers": 1, "vocab_size": WORDS, "max_position_embeddings": 77, "eos_token_id": WORDS - 1,
        "bos_token_id": WORDS - 2, "pad_token_id": 0,
    }  # fmt: skip
    picture = {**size, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    with torch.inference_mode(False):
        return CLIPModel(CLIPConfig(text_config=text, vision_config=picture, projection_dim=16)).eval()


def write_clip(folder: Path) -> Path:
    path = folder / "clip_tiny.safetensors"
    save_file({key: value.contiguous() for key, value in tiny_clip().state_dict().items()}, path)
    return path


def write_dino(folder: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(2)
    with torch.inference_mode(False):
        config = ViTConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16
        )  # fmt: skip
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "dino")
    return folder / "dino" / "model.safetensors"


def write_script(folder: Path) -> Path:
    with torch.inference_mode(False):
        torch.jit.script(Colours()).save(str(folder / "colours.pt"))
    return folder / "colours.pt"
