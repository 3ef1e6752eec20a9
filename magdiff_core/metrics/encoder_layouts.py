"""Public layouts of CLIP and DINO files, told apart by their keys, brought to one set of names.

CLIP: `transformers` (both halves and both projections in one file, as `model.safetensors` of openai/clip-vit-large-patch14) and
OpenAI's own, which open_clip uses too. DINO: the released one, which timm uses too, and `transformers`' ViT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, cat

from .transformer import PictureTower, TextTower, TowerSizes

Tensors = Mapping[str, Tensor]

_HUGE_WIDTHS = (1280, 1408, 1664)
"""Widths of CLIP's picture towers H, g and bigG: 16 heads, not one for each 64 numbers as the smaller ones and all text towers."""

_OPENAI_BLOCK = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.in_proj_": "qkv.", "attn.out_proj": "out", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2",
}  # fmt: skip
_HF_CLIP_BLOCK = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip
_DINO_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "qkv", "attn.proj": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
_HF_VIT_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "out", "intermediate.dense": "fc1",
    "output.dense": "fc2",
}  # fmt: skip


class LayoutError(ValueError):
    """A file does not hold the model that is wanted."""


def _depth(tensors: Tensors, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def _blocks(tensors: Tensors, prefix: str, names: Mapping[str, str], separate: tuple[str, str, str] | None) -> dict[str, Tensor]:
    """Transformer blocks under our names; `separate` names query, key and value where they are three layers."""
    result = {}
    for number in range(_depth(tensors, prefix)):
        for old, new in names.items():
            for kind in ("weight", "bias"):
                dot = "" if old.endswith("_") else "."
                result[f"blocks.{number}.{new.rstrip('.')}.{kind}"] = tensors[f"{prefix}{number}.{old}{dot}{kind}"]
        for kind in ("weight", "bias") if separate else ():
            three = [tensors[f"{prefix}{number}.{name}.{kind}"] for name in separate]
            result[f"blocks.{number}.qkv.{kind}"] = cat(three)
    return result


def _tower_sizes(state: Tensors, activation: str, epsilon: float, heads: int | None) -> TowerSizes:
    width = state["positions"].shape[1]
    patches, projection, words = state.get("patches.weight"), state.get("projection.weight"), state.get("words.weight")
    if heads is None:
        heads = 16 if patches is not None and width in _HUGE_WIDTHS else max(1, width // 64)
    return TowerSizes(
        width=width,
        depth=_depth(state, "blocks."),
        heads=heads,
        hidden=state["blocks.0.fc1.weight"].shape[0],
        positions=state["positions"].shape[0],
        activation=activation,
        epsilon=epsilon,
        patch=0 if patches is None else patches.shape[-1],
        output=0 if projection is None else projection.shape[0],
        vocabulary=0 if words is None else words.shape[0],
    )


def _hf_picture(tensors: Tensors) -> dict[str, Tensor]:
    at = "vision_model."
    return {
        "patches.weight": tensors[f"{at}embeddings.patch_embedding.weight"],
        "class_token": tensors[f"{at}embeddings.class_embedding"].flatten(),
        "positions": tensors[f"{at}embeddings.position_embedding.weight"],
        **{f"norm_before.{kind}": tensors[f"{at}pre_layrnorm.{kind}"] for kind in ("weight", "bias")},
        **{f"norm.{kind}": tensors[f"{at}post_layernorm.{kind}"] for kind in ("weight", "bias")},
        "projection.weight": tensors["visual_projection.weight"],
        **_blocks(tensors, f"{at}encoder.layers.", _HF_CLIP_BLOCK, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    }


def _hf_text(tensors: Tensors) -> dict[str, Tensor]:
    at = "text_model."
    return {
        "words.weight": tensors[f"{at}embeddings.token_embedding.weight"],
        "positions": tensors[f"{at}embeddings.position_embedding.weight"],
        **{f"norm.{kind}": tensors[f"{at}final_layer_norm.{kind}"] for kind in ("weight", "bias")},
        "projection.weight": tensors["text_projection.weight"],
        **_blocks(tensors, f"{at}encoder.layers.", _HF_CLIP_BLOCK, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    }


def _openai_picture(tensors: Tensors) -> dict[str, Tensor]:
    return {
        "patches.weight": tensors["visual.conv1.weight"],
        "class_token": tensors["visual.class_embedding"],
        "positions": tensors["visual.positional_embedding"],
        **{f"norm_before.{kind}": tensors[f"visual.ln_pre.{kind}"] for kind in ("weight", "bias")},
        **{f"norm.{kind}": tensors[f"visual.ln_post.{kind}"] for kind in ("weight", "bias")},
        "projection.weight": tensors["visual.proj"].T,
        **_blocks(tensors, "visual.transformer.resblocks.", _OPENAI_BLOCK, None),
    }


def _openai_text(tensors: Tensors) -> dict[str, Tensor]:
    return {
        "words.weight": tensors["token_embedding.weight"],
        "positions": tensors["positional_embedding"],
        **{f"norm.{kind}": tensors[f"ln_final.{kind}"] for kind in ("weight", "bias")},
        "projection.weight": tensors["text_projection"].T,
        **_blocks(tensors, "transformer.resblocks.", _OPENAI_BLOCK, None),
    }


_LAYOUTS = (
    ("vision_model.embeddings.patch_embedding.weight", _hf_picture, "text_model.embeddings.token_embedding.weight", _hf_text),
    ("visual.conv1.weight", _openai_picture, "token_embedding.weight", _openai_text),
)
"""Key that tells the picture half, its reader, key that tells the text half, its reader."""

_WHOLE = "a whole CLIP file holds both halves and both projections, as model.safetensors of openai/clip-vit-large-patch14 does"


def read_clip(tensors: Tensors, name: str, config: Mapping | None = None) -> tuple[PictureTower, TextTower | None]:
    """The picture tower and, where the file has it, the text tower of a CLIP file, with weights, in float32.

    Head counts and activation are not in the weights: `config` tells them, or else the published sizes do (quick GELU up to
    L, GELU from H on).

    Args:
        tensors: by name, as the file has them.
        name: of the file, for messages.
        config: config.json of `transformers` that belongs to the file, or None.

    Raises:
        LayoutError: no CLIP, the text half only, a projection that is missing, or halves that do not fit each other.
    """
    for picture_key, picture, text_key, text in _LAYOUTS:
        if picture_key not in tensors and text_key not in tensors:
            continue
        if picture_key not in tensors:
            raise LayoutError(f"{name} holds only the text half of a CLIP: {_WHOLE}")
        towers = (picture(_Named(tensors, name)), text(_Named(tensors, name)) if text_key in tensors else None)
        break
    else:
        if any(key.startswith(("text_model.", "transformer.text_model.", "cond_stage_model.")) for key in tensors):
            raise LayoutError(f"{name} holds a text encoder without its picture half: {_WHOLE}")
        raise LayoutError(f"{name} is no CLIP file: {_WHOLE}")
    states = [tower for tower in towers if tower is not None]
    widths = [state["projection.weight"].shape[0] for state in states]
    if len(set(widths)) > 1:
        raise LayoutError(
            f"{name}: its picture half ends in {widths[0]} numbers, its text half in {widths[1]}: the halves belong to different "
            "models, their similarity means nothing"
        )
    huge = states[0]["positions"].shape[1] in _HUGE_WIDTHS
    sizes = []
    for state, part in zip(states, ("vision_config", "text_config")):
        told = (config or {}).get(part, {})
        sizes.append(
            _tower_sizes(
                state,
                told.get("hidden_act", "gelu" if huge else "quick_gelu"),
                told.get("layer_norm_eps", 1e-5),
                told.get("num_attention_heads"),
            )
        )
        if sizes[-1].activation not in ("gelu", "quick_gelu"):
            raise LayoutError(f"{name}: its config names the activation {sizes[-1].activation}; known are gelu and quick_gelu")
    picture_tower = _filled(PictureTower(sizes[0], norm_before=True, patch_bias=False), states[0], name)
    return picture_tower, _filled(TextTower(sizes[1]), states[1], name) if len(states) > 1 else None


def read_dino(tensors: Tensors, name: str, heads: int | None = None) -> PictureTower:
    """DINO's ViT with weights, in float32: 16-pixel patches of ViT-S in the papers, any size is taken.

    Args:
        tensors: by name, as the file has them.
        name: of the file, for messages.
        heads: one for each 64 numbers by default, as in all that were published.

    Raises:
        LayoutError: no DINO (version 1) file.
    """
    tensors = {key.removeprefix("backbone.").removeprefix("vit."): value for key, value in tensors.items()}
    named = _Named(tensors, name)
    if any("layer_scale" in key or key.endswith(".ls1.gamma") or "register" in key for key in tensors):
        raise LayoutError(f"{name} is a later DINO: the DINO score is defined with DINO ViT-S/16 (dino_deitsmall16_pretrain)")
    if "blocks.0.attn.qkv.weight" in tensors and "cls_token" in tensors:
        state = {
            **{f"patches.{kind}": named[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")},
            "class_token": named["cls_token"].flatten(),
            "positions": named["pos_embed"][0],
            **{f"norm.{kind}": named[f"norm.{kind}"] for kind in ("weight", "bias")},
            **_blocks(named, "blocks.", _DINO_BLOCK, None),
        }
    elif "embeddings.cls_token" in tensors and "encoder.layer.0.attention.attention.query.weight" in tensors:
        state = {
            **{f"patches.{kind}": named[f"embeddings.patch_embeddings.projection.{kind}"] for kind in ("weight", "bias")},
            "class_token": named["embeddings.cls_token"].flatten(),
            "positions": named["embeddings.position_embeddings"][0],
            **{f"norm.{kind}": named[f"layernorm.{kind}"] for kind in ("weight", "bias")},
            **_blocks(
                named,
                "encoder.layer.",
                _HF_VIT_BLOCK,
                ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            ),
        }
    else:
        raise LayoutError(f"{name} is no DINO file: give dino_deitsmall16_pretrain.pth or model.safetensors of dino-vits16")
    sizes = _tower_sizes(state, "gelu", 1e-6, heads)
    return _filled(PictureTower(sizes, norm_before=False, patch_bias=True), state, name)


def config_beside(path: str | Path) -> dict | None:
    """config.json beside a file that has the name `transformers` gives (its folder then holds this one model), else None."""
    path = Path(path)
    if not re.fullmatch(r"(model|pytorch_model)\.(safetensors|bin)", path.name):
        return None
    try:
        config = json.loads((path.parent / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


class _Named(dict):
    """Tensors whose absence is told with the name of the file."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        super().__init__(tensors)
        self.name = name

    def __missing__(self, key: str) -> Tensor:
        hint = f": {_WHOLE}" if "projection" in key or key == "visual.proj" else ": it is cut short, or another model"
        raise LayoutError(f"{self.name} has no {key}{hint}")


def _filled(tower, state: Tensors, name: str):
    try:
        tower.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        raise LayoutError(f"{name} holds weights whose sizes do not fit each other: {error}") from error
    return tower.requires_grad_(False).eval()
