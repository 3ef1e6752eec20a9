"""The checkpoint layouts of the released MagDiff code (`MagDiff.pth`) and of VidRD (`ModelT2V.pth`).

Both are dictionaries of `unet.*` (diffusers names), `text_encoder.*` (transformers' CLIPTextModel), `vae.*` and, MagDiff only,
`enclip_projector.*`. A UNet on its own is accepted too, with or without the `unet.` prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..adapter import AdapterConfig, ImageEncoderConfig
from .checkpoint import Family, ReadCheckpoint
from .unet_names import UnetNames, transformer_blocks

MAGDIFF = "MagDiff"
VIDRD = "VidRD"
UNET_PREFIX = "unet."
LATENT_CHANNELS = 4
HEAD_WIDTH = 64

_TEMP_CONV = re.compile(r"(?P<site>.+)\.temp_conv\.convs\.(?P<place>\d+)\.(?P<tensor>weight|bias)")
_TEMP_CONV_PLACES = {
    str(first + offset): f"layers.{layer}.{name}"
    for layer, first in enumerate((0, 4, 8, 12))
    for offset, name in ((0, "norm"), (3, "conv"))
}
_IN_BLOCK = re.compile(
    r"(?P<site>.+\.transformer_blocks\.\d+)\.(?P<rest>temp_attn\..+|temp_norm\..+|attn2\.(?:to_[kv]_ip|\w+_scale).*)"
)
_TEMP_ATTN = {
    "temp_norm.weight": "norm.weight",
    "temp_norm.bias": "norm.bias",
    "temp_attn.to_q.weight": "q",
    "temp_attn.to_k.weight": "k",
    "temp_attn.to_v.weight": "v",
    "temp_attn.to_out.0.weight": "to_out.weight",
    "temp_attn.to_out.0.bias": "to_out.bias",
}
_IMAGE_STREAM = {
    "attn2.to_k_ip.weight": "to_k_image.weight",
    "attn2.to_v_ip.weight": "to_v_image.weight",
    "attn2.text_cross_attention_scale": "alpha_text",
    "attn2.image_cross_attention_scale": "alpha_image",
}
_VAE_KEY = re.compile(
    r"(?:post_)?quant_conv\.\w+"
    r"|(?:encoder|decoder)\.(?:conv_in|conv_out|conv_norm_out|norm_out)\.\w+"
    r"|(?:encoder|decoder)\.mid_block\.(?:resnets|attentions)\..+"
    r"|(?:encoder|decoder)\.(?:down|up)_blocks\.\d+\.(?:resnets|attentions|downsamplers|upsamplers)\..+"
    r"|(?:encoder|decoder)\.mid\.(?:block_[12]|attn_1)\..+"
    r"|(?:encoder|decoder)\.(?:down|up)\.\d+\.(?:block|attn|downsample|upsample)\..+"
)


def layout_of(keys: Iterable[str]) -> str | None:
    """`MAGDIFF`, `VIDRD`, or None for any other file."""
    keys = list(keys)
    if any(key.endswith(".attn2.text_cross_attention_scale") for key in keys):
        return MAGDIFF
    if any(re.search(r"(?:^|\.)temp_convs\.\d+\.convs\.\d+\.", key) or ".temp_attn.to_q." in key for key in keys):
        return VIDRD
    return None


def read_released(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """Take a released checkpoint apart. Meta tensors work.

    Raises ValueError, naming layout, keys and counts, for a file of another kind, with parts of a layer missing, or with UNet
    keys that have no place.
    """
    layout = layout_of(state_dict)
    if layout is None:
        raise ValueError("no MagDiff or VidRD UNet among these weights")
    prefix = UNET_PREFIX if any(key.startswith(UNET_PREFIX) for key in state_dict) else ""
    others = ("text_encoder.", "vae.", "enclip_projector.")
    source = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and not key.startswith(others)
    }
    unet, temporal, image = _sort_unet(source, layout)
    adapter = {**temporal, **image}
    adapter.update({f"projector.{key}": value for key, value in _part(state_dict, "enclip_projector.").items()})
    if layout == MAGDIFF:
        conv_in = unet["input_blocks.0.0.weight"]
        unet["input_blocks.0.0.weight"] = conv_in[:, :LATENT_CHANNELS].contiguous()
        adapter["hfa.conv_z.weight"] = conv_in[:, LATENT_CHANNELS:].contiguous()
    return ReadCheckpoint(
        layout=layout,
        unet=unet,
        adapter=adapter,
        config=_config(layout, adapter),
        text_encoder={k: v for k, v in _part(state_dict, "text_encoder.").items() if not k.endswith("position_ids")},
        # VidRD's autoencoder has temporal layers, which its own code never runs: they are left out.
        vae={k: v for k, v in _part(state_dict, "vae.").items() if _VAE_KEY.fullmatch(k)},
    )


def _part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def _config(layout: str, adapter: Mapping[str, Tensor]) -> AdapterConfig:
    encoder = ImageEncoderConfig()
    heads = AdapterConfig.projector_heads
    if "projector.proj_in.weight" in adapter:
        encoder = ImageEncoderConfig(width=adapter["projector.proj_in.weight"].shape[1])
        heads = max(1, adapter["projector.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH)
    return AdapterConfig(
        base="SD2.1 base (512 pixels, eps)",
        projector_heads=heads,
        image_encoder=encoder,
        licence="none stated",
        trained_from=f"released {layout} checkpoint",
    )


def _sort_unet(source: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Base weights by LDM name, temporal part, image stream."""
    names = UnetNames.of(source)
    base: dict[str, Tensor] = {}
    temporal: dict[str, Tensor] = {}
    image: dict[str, Tensor] = {}
    without_place = []
    for key, value in source.items():
        ldm = names.ldm(key)
        conv = _TEMP_CONV.fullmatch(ldm or "")
        inside = _IN_BLOCK.fullmatch(ldm or "")
        if ldm is None:
            without_place.append(key)
        elif conv and conv["place"] in _TEMP_CONV_PLACES:
            # [C, C, 3, 1, 1] over (F, h, w) is [C, C, 3, 1] over (F, h * w).
            weight = value.squeeze(-1) if value.ndim == 5 else value
            temporal[f"temporal.conv.{conv['site']}.{_TEMP_CONV_PLACES[conv['place']]}.{conv['tensor']}"] = weight
        elif inside and inside["rest"] in _TEMP_ATTN:
            temporal[f"temporal.attn.{inside['site']}.{_TEMP_ATTN[inside['rest']]}"] = value
        elif inside and inside["rest"] in _IMAGE_STREAM:
            image[f"apa.{inside['site']}.{_IMAGE_STREAM[inside['rest']]}"] = value
        elif conv or inside:
            without_place.append(key)
        else:
            base[ldm] = value
    if without_place:
        raise ValueError(
            f"this looks like a {layout} checkpoint, but {len(without_place)} of its {len(source)} UNet keys are not part of that "
            f"layout, such as {without_place[0]}: it is of another version or mixed with another model. "
            "Use the whole checkpoint as it was published"
        )
    _check_complete(names, layout, base, temporal, image)
    for site in [key.removesuffix(".q") for key in temporal if key.endswith(".q")]:
        q, k, v = (temporal.pop(f"{site}.{name}") for name in "qkv")
        temporal[f"{site}.to_qkv.weight"] = torch.cat((q, k, v))
    return base, temporal, image


def _check_complete(
    names: UnetNames,
    layout: str,
    base: Mapping[str, Tensor],
    temporal: Mapping[str, Tensor],
    image: Mapping[str, Tensor],
) -> None:
    blocks = transformer_blocks(base)
    expected = names.required(base)
    for site in names.res_blocks():
        places = _TEMP_CONV_PLACES.values()
        expected += [f"temporal.conv.{site}.{place}.{tensor}" for place in places for tensor in ("weight", "bias")]
    expected += [f"temporal.attn.{site}.{name}" for site in blocks for name in _TEMP_ATTN.values()]
    if layout == MAGDIFF:
        expected += [f"apa.{site}.{name}" for site in blocks for name in _IMAGE_STREAM.values()]
    found = {**base, **temporal, **image}
    missing = [key for key in expected if key not in found]
    if missing:
        raise ValueError(
            f"this looks like a {layout} checkpoint, but {len(missing)} of its weights are missing, such as {missing[0]} "
            f"(LDM name): the file is a part of a checkpoint or was cut. Use the whole {layout} checkpoint, or an adapter file"
        )
    channels = base["input_blocks.0.0.weight"].shape[1]
    wanted = 2 * LATENT_CHANNELS if layout == MAGDIFF else LATENT_CHANNELS
    if channels != wanted:
        raise ValueError(
            f"this looks like a {layout} checkpoint, but its first convolution takes {channels} channels, not {wanted}: "
            "it is mixed from two models. Use the whole checkpoint as it was published"
        )


FAMILY_RELEASED = Family("MagDiff or VidRD", lambda keys: layout_of(keys) is not None, read_released)
