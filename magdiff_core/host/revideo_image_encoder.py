"""The image encoder inside ReVideo's checkpoint: OpenCLIP's ViT-H, or one of that layout in another size."""

from __future__ import annotations

import comfy.clip_vision
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..weights.revideo import IMAGE_ENCODER_PREFIX

HEAD_CHANNELS = 80
"""Width of an attention head of ViT-H, which no weight tells."""
_VISUAL = f"{IMAGE_ENCODER_PREFIX}visual."
_LAYERS = "vision_model.encoder.layers."


def build_image_encoder(weights: dict[str, Tensor], head_channels: int = HEAD_CHANNELS) -> ClipVisionModel:
    """The image encoder with these weights (`visual.*` of OpenCLIP).

    `head_channels` counts for sizes that ComfyUI does not know. Raises ValueError, with counts and a name, when weights are
    missing.
    """
    prefixed = {IMAGE_ENCODER_PREFIX + key: value for key, value in weights.items()}
    known = comfy.clip_vision.load_clipvision_from_sd(dict(prefixed), _VISUAL, True)
    if known is not None:
        return known
    renamed = comfy.clip_vision.convert_to_transformers(prefixed, _VISUAL)
    encoder = ClipVisionModel(_config(renamed, head_channels))
    missing, _ = encoder.load_sd(renamed)
    missing = [key for key in missing if not key.endswith("position_ids")]
    if missing:
        raise ValueError(f"the image encoder of this file is not whole: {len(missing)} weights are missing, such as {missing[0]}")
    return encoder


def _config(weights: dict[str, Tensor], head_channels: int) -> dict:
    width, channels, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
    patches = weights["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    layers = {key.removeprefix(_LAYERS).split(".")[0] for key in weights if key.startswith(_LAYERS)}
    return {
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": width,
        "image_size": patch * round(patches**0.5),
        "intermediate_size": weights[f"{_LAYERS}0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": max(1, width // head_channels),
        "num_channels": channels,
        "num_hidden_layers": len(layers),
        "patch_size": patch,
        "projection_dim": weights["visual_projection.weight"].shape[0],
    }
