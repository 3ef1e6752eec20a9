"""ModelScope's text-to-video model and zeroscope, in the published layout and in diffusers': a whole UNet of SD2.1's shape.

The spatial weights are always those of the file. To SD2.1 it adds a Temp-Conv to each ResBlock, a temporal transformer after each
spatial one, and one after the first convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..config import AdapterConfig
from .checkpoint import Family, ReadCheckpoint
from .lvdm import is_lvdm
from .temporal_names import (
    conv_block_name,
    conv_block_weight,
    join_qkv,
    required_in_conv_block,
    required_in_transformer,
    transformer_name,
    transformer_weight,
)
from .unet_names import UnetNames, transformer_blocks

MODELSCOPE = "ModelScope"
FIRST = "input_blocks.0.0"
"""Site of the transformer after the first convolution."""

_OWN_CONV = "temopral_conv"
_PUBLISHED_PREFIXES = ("model.diffusion_model.", "unet.", "module.")
_OWN_LAYER = re.compile(r"(?P<block>(?:input|output)_blocks\.\d+|middle_block)\.(?P<rest>.+)")
_USE = "Use text2video_pytorch_model.pth, or diffusion_pytorch_model of the folder unet"


def _without_prefix(keys: Iterable[str]) -> str:
    """The prefix that all UNet keys of a file with these keys have, "" for none."""
    keys = list(keys)
    ends = (f".{_OWN_CONV}.conv1.0.weight", "transformer_in.norm.weight")
    for prefix in _PUBLISHED_PREFIXES:
        if any(key.startswith(prefix) and key.endswith(ends) for key in keys):
            return prefix
    return ""


def is_modelscope(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is one of them, and not VideoCrafter or DynamiCrafter, which grew out of it."""
    keys = list(keys)
    if is_lvdm(keys):
        return False
    return any(f".{_OWN_CONV}." in key or "transformer_in." in key or ".temp_attentions." in key for key in keys)


def read_modelscope(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """The UNet in LDM names and the layers along time as an adapter. Meta tensors work.

    Raises ValueError for weights missing and for keys without a place.
    """
    prefix = _without_prefix(state_dict)
    source = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    own = any(f".{_OWN_CONV}." in key for key in source)
    names = _own_shape(source) if own else UnetNames.of(source)
    unet: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    without_place = []
    for key, value in source.items():
        kind, site, name = _place_own(key) if own else _place_diffusers(key, names)
        if kind == "conv" and (inner := conv_block_name(name)):
            adapter[f"temporal.conv.{site}.{inner}"] = conv_block_weight(value)
        elif kind == "transformer" and (inner := transformer_name(name)):
            adapter[f"temporal.transformer.{site}.{inner}"] = transformer_weight(inner, value)
        elif kind == "base":
            unet[name] = value
        else:
            without_place.append(key)
    _check_places(without_place, len(source))
    expected = _expected(names, unet)
    _check_complete([key for key in expected if key not in unet and key not in adapter], len(expected))
    _check_places([key for key in (*unet, *adapter) if key not in expected], len(source))
    return ReadCheckpoint(layout=MODELSCOPE, unet=unet, adapter=join_qkv(adapter), config=_config())


def _check_places(without_place: list[str], total: int) -> None:
    if without_place:
        raise ValueError(
            f"this looks like a {MODELSCOPE} model, but {len(without_place)} of its {total} tensors have no place there, "
            f"such as {without_place[0]}: it is of another version or mixed with another model. {_USE}"
        )


def _check_complete(missing: list[str], expected: int) -> None:
    if missing:
        raise ValueError(
            f"this looks like a {MODELSCOPE} model, but {len(missing)} of its {expected} weights are missing, such as {missing[0]} "
            f"(name of SD's UNet or of an adapter): the file is a part of a model or was cut. {_USE}"
        )


def _place_own(key: str) -> tuple[str, str, str]:
    """Kind ("base", "conv", "transformer" or ""), site in SD's UNet, and name: inside the site, or for the base the whole one."""
    match = _OWN_LAYER.fullmatch(key)
    if match is None:
        return ("base", "", key) if key.startswith(("time_embed.", "out.")) else ("", "", key)
    block, rest = match["block"], match["rest"]
    place, _, name = rest.partition(".")
    if block == "input_blocks.0":
        return ("transformer", FIRST, name) if place == "1" else ("base", "", key)
    if place == "op":
        return "base", "", f"{block}.0.op.{name}"
    if name.startswith("conv."):
        # The upsampler: third in a block with transformers, where SD has it second.
        return "base", "", f"{block}.{'2' if place == '3' else '1'}.{name}"
    if name.startswith(f"{_OWN_CONV}."):
        site = f"{block}.{2 if (block, place) == ('middle_block', '3') else place}"
        return "conv", site, name.removeprefix(f"{_OWN_CONV}.")
    if place == "2":
        return "transformer", f"{block}.1", name
    if (block, place) == ("middle_block", "3"):
        return "base", "", f"{block}.2.{name}"
    return "base", "", key


def _place_diffusers(key: str, names: UnetNames) -> tuple[str, str, str]:
    """As `_place_own`."""
    if key.startswith("transformer_in."):
        return "transformer", FIRST, key.removeprefix("transformer_in.")
    temporal = ".temp_attentions." in key
    ldm = names.ldm(key.replace(".temp_attentions.", ".attentions."))
    if ldm is None:
        return "", "", key
    if temporal:
        parts = 2 if ldm.startswith("middle_block.") else 3
        pieces = ldm.split(".")
        return "transformer", ".".join(pieces[:parts]), ".".join(pieces[parts:])
    site, conv, name = ldm.partition(".temp_conv.")
    return ("conv", site, name) if conv else ("base", "", ldm)


def _own_shape(keys: Iterable[str]) -> UnetNames:
    """Shape of a UNet in the published layout."""
    keys = list(keys)
    downsamplers = sorted({int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.op\.", key))})
    blocks = 1 + max((int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.", key))), default=0)
    layers = (downsamplers[0] if downsamplers else blocks) - 1
    attention = {
        int(match[1]) // (layers + 1) for key in keys if (match := re.match(r"output_blocks\.(\d+)\.1\.transformer_blocks\.", key))
    }
    return UnetNames(len(downsamplers) + 1, layers, frozenset(attention))


def _expected(names: UnetNames, unet: Mapping[str, Tensor]) -> dict[str, None]:
    """LDM names of the UNet and adapter names (q, k and v apart) of everything that a model of this shape has."""
    transformers = dict.fromkeys([FIRST, *(block.partition(".transformer_blocks.")[0] for block in transformer_blocks(unet))])
    expected = names.required(unet)
    expected += [f"temporal.conv.{site}.{name}" for site in names.res_blocks() for name in required_in_conv_block()]
    expected += [f"temporal.transformer.{site}.{name}" for site in transformers for name in required_in_transformer()]
    return dict.fromkeys(expected)


def _config() -> AdapterConfig:
    return AdapterConfig(
        base="the UNet of the same file (SD2.1 shape)",
        frames=16,
        clip_norm=False,
        temporal_on_one_frame=True,
        licence="CC-BY-NC-4.0",
        trained_from="ModelScope text-to-video or zeroscope",
    )


FAMILY_MODELSCOPE = Family(MODELSCOPE, is_modelscope, read_modelscope)
