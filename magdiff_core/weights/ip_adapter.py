"""IP-Adapter for SD1.5 (plain, light, plus): keys and values of the picture for every cross-attention, and the image projection.

A file holds `image_proj.*` and `ip_adapter.<N>.{to_k_ip,to_v_ip}.weight`. N counts diffusers' attention processors, which stand in
the order down, up, middle, self- and cross-attention by turns: cross-attention is odd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import POOLED_LAYER, TOKENS_OF_PICTURE, ZERO_PICTURE, AdapterConfig, ImageEncoderConfig
from .checkpoint import Family, ReadCheckpoint

PLAIN, PLUS = "IP-Adapter", "IP-Adapter plus"
HEAD_WIDTH = 64
"""Width of a head of the plus projection."""

_SITES = (
    *(f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)),
    *(f"output_blocks.{i}.1" for i in range(3, 12)),
    "middle_block.1",
)
_SDXL_SITES = 70
_KEY = re.compile(r"ip_adapter\.(?P<number>\d+)\.(?P<tensor>to_[kv]_ip)\.weight")
_TENSORS = {"to_k_ip": "to_k_image", "to_v_ip": "to_v_image"}
_PROJECTION = "image_proj."
_PLAIN_PROJECTION = tuple(f"{name}.{tensor}" for name in ("proj", "norm") for tensor in ("weight", "bias"))
_RESAMPLER_AROUND = ("latents", *(f"{name}.{t}" for name in ("proj_in", "proj_out", "norm_out") for t in ("weight", "bias")))
_RESAMPLER_LAYER = (
    *(f"0.{norm}.{tensor}" for norm in ("norm1", "norm2") for tensor in ("weight", "bias")),
    *(f"0.{name}.weight" for name in ("to_q", "to_kv", "to_out")),
    *("1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"),
)
_USE = "Use ip-adapter_sd15, ip-adapter_sd15_light, ip-adapter-plus_sd15 or ip-adapter-plus-face_sd15"


def is_ip_adapter(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds an IP-Adapter, or a part of one."""
    return any(key.startswith(("ip_adapter.", _PROJECTION)) for key in keys)


def read_ip_adapter(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """The image stream and its projector as an adapter for SD1.5. Meta tensors work.

    Raises ValueError for another base or another kind of projection, for weights missing and for keys without a place.
    """
    projection = {key.removeprefix(_PROJECTION): value for key, value in state_dict.items() if key.startswith(_PROJECTION)}
    layout, places = _projection_kind(projection)
    adapter = {f"projector.{key}": value for key, value in projection.items() if key in places}
    numbers = {int(match["number"]) for key in state_dict if (match := _KEY.fullmatch(key))}
    if len(numbers) > len(_SITES):
        what = "for SDXL" if len(numbers) == _SDXL_SITES else "of a larger UNet"
        raise ValueError(f"this is an IP-Adapter {what} ({len(numbers)} cross-attentions), SD1.5 has {len(_SITES)}. {_USE}")
    without_place = [key for key in projection if key not in places]
    for key, value in state_dict.items():
        match = _KEY.fullmatch(key)
        if match and int(match["number"]) % 2 and int(match["number"]) < 2 * len(_SITES):
            site = f"apa.{_SITES[int(match['number']) // 2]}.transformer_blocks.0"
            adapter[f"{site}.{_TENSORS[match['tensor']]}.weight"] = value
            adapter[f"{site}.alpha_text"] = adapter[f"{site}.alpha_image"] = torch.ones(1)
        elif not key.startswith(_PROJECTION):
            without_place.append(key)
    if without_place:
        raise ValueError(
            f"this looks like an {layout}, but {len(without_place)} of its {len(state_dict)} tensors have no place there, such as "
            f"{without_place[0]}: it is of another kind (FaceID has LoRA tensors) or mixed with another model. {_USE}"
        )
    _check_complete(layout, adapter, places)
    return ReadCheckpoint(layout=layout, unet={}, adapter=adapter, config=_config(layout, adapter))


def _projection_kind(projection: Mapping[str, Tensor]) -> tuple[str, tuple[str, ...]]:
    """Layout, and the names that its projection has."""
    if not projection:
        raise ValueError(
            f"this looks like an IP-Adapter, but its image projection ({_PROJECTION}*) is missing: fetch it again. {_USE}"
        )
    if "proj.weight" in projection:
        return PLAIN, _PLAIN_PROJECTION
    if "latents" in projection:
        layers = {match[1] for key in projection if (match := re.match(r"layers\.(\d+)\.", key))}
        # 4 in every published file; a file that was cut has fewer, which the last number shows.
        depth = 1 + max(map(int, layers), default=0)
        return PLUS, (*_RESAMPLER_AROUND, *(f"layers.{i}.{name}" for i in range(depth) for name in _RESAMPLER_LAYER))
    kind = "a full-face" if "proj.3.weight" in projection else "a FaceID" if "proj.0.weight" in projection else "an unknown"
    raise ValueError(f"this looks like {kind} IP-Adapter, whose image projection this pack does not have. {_USE}")


def _check_complete(layout: str, adapter: Mapping[str, Tensor], places: Iterable[str]) -> None:
    expected = [f"projector.{name}" for name in places]
    expected += [f"apa.{site}.transformer_blocks.0.{name}.weight" for site in _SITES for name in _TENSORS.values()]
    missing = [key for key in expected if key not in adapter]
    if missing:
        raise ValueError(
            f"this looks like an {layout}, but {len(missing)} of its {len(expected)} weights are missing, such as "
            f"{missing[0]} (name in an adapter): the file was cut. {_USE}"
        )


def _config(layout: str, adapter: Mapping[str, Tensor]) -> AdapterConfig:
    if layout == PLAIN:
        heads, layer, width = AdapterConfig.projector_heads, POOLED_LAYER, adapter["projector.proj.weight"].shape[1]
    else:
        heads = max(1, adapter["projector.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH)
        layer, width = "penultimate", adapter["projector.proj_in.weight"].shape[1]
    return AdapterConfig(
        base="an SD1.5 checkpoint",
        text_width=adapter["apa.middle_block.1.transformer_blocks.0.to_k_image.weight"].shape[1],
        projector_heads=heads,
        image_tokens=TOKENS_OF_PICTURE,
        negative_picture=ZERO_PICTURE,
        image_encoder=ImageEncoderConfig(width=width, layer=layer, crop=True, channels="rgb"),
        licence="Apache-2.0",
        trained_from=layout,
    )


FAMILY_IP_ADAPTER = Family("IP-Adapter", is_ip_adapter, read_ip_adapter)
