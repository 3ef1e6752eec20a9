"""The layout of the released ReVideo checkpoint, what its names are called here, and the control file that is split from it.

One file holds everything: `model.diffusion_model.*` (the whole SVD UNet, fine-tuned), `model.ctrlnet_model.*` (the control
branch), `conditioner.*` and `first_stage_model.*` (image encoder and autoencoder). The trunk of the control branch has the
names of the UNet's own encoder.

A control file holds the control branch in our names and, as `base.<LDM key>`, the differences between the fine-tuned UNet and the
one that it was made from. Metadata: `format` "magdiff-control", `format_version`, `num_head_channels`, `clip_frames`, `base`,
`base_hashes` (JSON: LDM key -> hash of the base's own weight), `licence`, `trained_from`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

CONTROL_PREFIX = "model.ctrlnet_model."
CONTROL_FORMAT = "magdiff-control"
CONTROL_VERSION = "1"
BASE_DIFFERENCE = "base."
TRUNK = "trunk."

_PUBLISHED = (
    # (published, ours); the first that fits counts
    (r"mask_embedding\.(.+)", r"content_encoder.\1"),
    (r"controlnet_cond_embedding\.(.+)", r"motion_encoder.\1"),
    (r"weight_embedding\.(conv_final\..+)", r"safm.\1"),
    (r"weight_embedding\.(.+)", r"safm.weight_encoder.\1"),
    (r"controlnet_down_blocks\.(\d+)\.0\.(weight|bias)", r"zero_convs.\1.\2"),
    (r"controlnet_mid_block\.0\.(weight|bias)", r"zero_conv_middle.\1"),
    (r"((?:time_embed|label_emb|input_blocks|middle_block)\..+)", rf"{TRUNK}\1"),
)
UNET_PREFIX = "model.diffusion_model."
IMAGE_ENCODER_PREFIX = "conditioner.embedders.0.open_clip.model."
AUTOENCODER_PREFIX = "first_stage_model."
TEMPORAL_KEY_VALUE = re.compile(r".+\.time_stack\.\d+\.attn1\.to_[kv]\.weight")
"""Weights of the base that the paper's third stage trains: keys and values of temporal self-attention."""
CLIP_FRAMES = 14
"""Frames of a clip of the released model."""

# Keys that only this part has, wherever its keys begin.
_UNET_SIGNATURE = ("output_blocks.0.0.in_layers.0.weight", "input_blocks.0.0.weight", "out.2.weight")
_IMAGE_ENCODER_SIGNATURE = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
_AUTOENCODER_SIGNATURE = ("decoder.mid.block_1.mix_factor", "decoder.conv_in.weight", "encoder.conv_in.weight")
_OUR_SIGNATURE = ("motion_encoder.conv_in.weight", "content_encoder.conv_in.weight", "safm.weight_encoder.conv_in.weight")
_OUR_PARTS = ("motion_encoder.", "content_encoder.", "safm.", "zero_convs.", "zero_conv_middle.", TRUNK)
_SIGNATURE = ("controlnet_cond_embedding.conv_in.weight", "mask_embedding.conv_in.weight", "weight_embedding.conv_in.weight")


def our_name(published: str) -> str | None:
    """Our name of a published control key (without its prefix), or None for a key of another model."""
    for pattern, name in _PUBLISHED:
        match = re.fullmatch(pattern, published)
        if match:
            return match.expand(name)
    return None


def control_prefix(keys: Iterable[str]) -> str | None:
    """What stands before the control keys in a file with these keys: any prefix, "" for none; None when there is no control.

    A control file of ours has none. A released branch is recognised by the three condition encoders, which no other model has
    together.
    """
    keys = set(keys)
    if all(name in keys for name in _OUR_SIGNATURE):
        return ""
    return _prefix(keys, _SIGNATURE)


def _prefix(keys: set[str], signature: tuple[str, ...]) -> str | None:
    """What stands before all names of `signature` in `keys`; of several the shortest. None when they are not there together."""
    found = [key.removesuffix(signature[0]) for key in keys if key.endswith(signature[0])]
    whole = [prefix for prefix in found if all(prefix + name in keys for name in signature)]
    return min(whole, key=lambda prefix: (len(prefix), prefix), default=None)


@dataclass(frozen=True)
class ReVideoParts:
    """What a file holds, each part under the names that its reader knows, without prefix; an empty dict where it is missing.

    `control`: our names. `unet`: LDM names. `image_encoder`: OpenCLIP's (`visual.*`). `autoencoder`: SVD's, with the temporal
    decoder.
    """

    control: dict[str, Tensor] = field(default_factory=dict)
    unet: dict[str, Tensor] = field(default_factory=dict)
    image_encoder: dict[str, Tensor] = field(default_factory=dict)
    autoencoder: dict[str, Tensor] = field(default_factory=dict)


def released_parts(state_dict: Mapping[str, Tensor]) -> ReVideoParts:
    """Take a ReVideo file apart, whatever stands before the keys of its parts, and whichever of them it holds.

    Everything else (optimiser, averages, the second copy of the image autoencoder) is left out. Raises ValueError when it holds no
    control branch, or one with weights missing.
    """
    return ReVideoParts(
        control=read_control(state_dict),
        unet=read_unet(state_dict),
        image_encoder=_part(state_dict, _IMAGE_ENCODER_SIGNATURE, ("visual.",)),
        autoencoder=_part(state_dict, _AUTOENCODER_SIGNATURE, ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")),
    )


def read_unet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet of a file in LDM names without prefix, whatever stands before them; empty when there is none."""
    parts = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
    return _part(state_dict, _UNET_SIGNATURE, parts)


def read_base_differences(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Differences to base weights in a control file, by LDM key."""
    return {key.removeprefix(BASE_DIFFERENCE): value for key, value in state_dict.items() if key.startswith(BASE_DIFFERENCE)}


def _part(state_dict: Mapping[str, Tensor], signature: tuple[str, ...], begins: tuple[str, ...]) -> dict[str, Tensor]:
    prefix = _prefix(set(state_dict), signature)
    if prefix is None:
        return {}
    named = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return {key: value for key, value in named.items() if key.startswith(begins)}


def read_control(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The control branch of a released file or a control file in our names; other keys (UNet, optimiser) are left out.

    Raises ValueError when there is none, or when weights of it are missing.
    """
    prefix = control_prefix(state_dict)
    if prefix is None:
        raise ValueError("no ReVideo control branch among these weights")
    if _OUR_SIGNATURE[0] in state_dict:
        named = {key: value for key, value in state_dict.items() if key.startswith(_OUR_PARTS)}
    else:
        named = {our_name(key.removeprefix(prefix)): value for key, value in state_dict.items() if key.startswith(prefix)}
        named.pop(None, None)
    _check_complete(named)
    return named


def encoder_widths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Widths of the condition encoders in a control branch in our names: of the first convolution and of the three strided ones."""
    layers = ("conv_in", "blocks.1", "blocks.3", "blocks.5")
    return tuple(weights[f"content_encoder.{layer}.weight"].shape[0] for layer in layers)


def trunk_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk of a control branch in our names, under the names that a UNet's own encoder has."""
    return {key.removeprefix(TRUNK): value for key, value in weights.items() if key.startswith(TRUNK)}


def _check_complete(weights: Mapping[str, Tensor]) -> None:
    expected = []
    for encoder in ("content_encoder", "motion_encoder", "safm.weight_encoder"):
        expected += [f"{encoder}.{layer}" for layer in ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")]
    expected += ["safm.conv_final", "zero_conv_middle", f"{TRUNK}time_embed.0", f"{TRUNK}time_embed.2"]
    blocks = {int(m[1]) for key in weights if (m := re.match(rf"{TRUNK}input_blocks\.(\d+)\.", key))}
    expected += [f"zero_convs.{block}" for block in range(max(blocks, default=0) + 1)]
    expected.append(f"{TRUNK}input_blocks.0.0")
    if any(".time_stack." in key for key in weights):
        expected += [f"{TRUNK}label_emb.0.0", f"{TRUNK}label_emb.0.2"]
    missing = [f"{layer}.{tensor}" for layer in expected for tensor in ("weight", "bias") if f"{layer}.{tensor}" not in weights]
    if missing:
        raise ValueError(
            f"this looks like a ReVideo control branch, but {len(missing)} of its weights are missing, such as {missing[0]}: "
            "the file was cut or is of another version. Fetch it again"
        )
