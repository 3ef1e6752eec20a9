"""VideoCrafter and DynamiCrafter: whole models around a UNet of SD2.1's shape, in the names of their common code.

To SD2.1 the UNet adds a Temp-Conv to each ResBlock, a temporal transformer after each spatial one and after the first convolution,
and the frame rate in the time embedding. VideoCrafter1 image-to-video and DynamiCrafter add an image stream to cross-attention;
DynamiCrafter also takes the picture's latent in four more input channels, and its 256-pixel model learned a weight for each stream.

Parts of a file: `model.diffusion_model.*`, `image_proj_model.*`, `cond_stage_model.model.*` (OpenCLIP text), `embedder.model.*`
(OpenCLIP image), `first_stage_model.*`; `scale_arr` and `alphas_cumprod` tell the noise schedule where they were kept. What was
trained how is in `lvdm_settings`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .checkpoint import Family, ReadCheckpoint, check_complete, check_places, without_prefix
from .lvdm_settings import DYNAMICRAFTER, DYNAMICRAFTER_256, VIDEOCRAFTER1, VIDEOCRAFTER2, settings
from .temporal_names import (
    conv_block_name,
    join_qkv,
    required_in_conv_block,
    required_in_transformer,
    transformer_name,
)
from .unet_names import UnetNames, transformer_blocks

LATENT_CHANNELS = 4
FIRST = "input_blocks.0.0"
"""Site of the transformer after the first convolution."""

_log = logging.getLogger("magdiff")

_UNET = "model.diffusion_model."
_FIRST_TRANSFORMER = "init_attn.0."
_FPS = re.compile(r"(?:fps_embedding|framestride_embed)\.(?P<name>[02]\.(?:weight|bias))")
_CONV = ".temopral_conv."
_RELATIVE = "relative_position_"
_BLOCK = re.compile(r"(?P<block>(?:input|output)_blocks\.\d+|middle_block)\.(?P<place>\d+)\.(?P<name>.+)")
_STREAM = re.compile(r"(?P<site>.+\.transformer_blocks\.\d+)\.attn2\.(?P<name>to_k_ip\.weight|to_v_ip\.weight|alpha)")
_STREAM_NAMES = {"to_k_ip.weight": "to_k_image.weight", "to_v_ip.weight": "to_v_image.weight", "alpha": "alpha"}
_OPENCLIP_TEXT = ("transformer.", "token_embedding.", "ln_final.", "positional_embedding", "text_projection")
_OTHER_PARTS = {
    # part of ReadCheckpoint -> prefix in the file, beginnings of the names that count
    "projector": ("image_proj_model.", ("",)),
    "text_encoder": ("cond_stage_model.model.", _OPENCLIP_TEXT),
    "image_encoder": ("embedder.model.", ("visual.",)),
    "vae": ("first_stage_model.", ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")),
}
_USE = "Use model.ckpt as it was published"


def is_lvdm(keys: Collection[str]) -> bool:
    """Whether a file with these keys holds a UNet of VideoCrafter or DynamiCrafter."""
    own = (_FIRST_TRANSFORMER, "fps_embedding.", "framestride_embed.")
    if any(key.removeprefix(_root(key)).removeprefix(_UNET).startswith(own) for key in keys):
        return True
    # A part of one. ModelScope, whose Temp-Conv has the same name, names its downsamplers otherwise.
    part = any(_UNET in key and _CONV in key for key in keys)
    return part and not any(re.search(r"input_blocks\.\d+\.op\.", key) for key in keys)


def _root(key: str) -> str:
    """What stands before the names of the model: nothing, or what a trainer (DeepSpeed) put there."""
    return re.match(r"(?:module\.)?(?:_forward_module\.)?", key)[0]


def read_lvdm(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """Take a VideoCrafter or DynamiCrafter checkpoint, or its UNet alone, apart. Meta tensors work.

    Raises ValueError, naming layout, keys and counts, for a file with parts missing or keys without a place.
    """
    state_dict = {key.removeprefix(_root(key)): value for key, value in state_dict.items()}
    prefix = _UNET if any(key.startswith(_UNET) for key in state_dict) else ""
    parts, used = _other_parts(state_dict)
    source = without_prefix({key: value for key, value in state_dict.items() if key not in used}, prefix)
    if not prefix:
        source = {key: value for key, value in source.items() if _is_unet(key)}
    layout = _layout(source)
    unet, adapter = _sort(source, layout)
    if layout in (DYNAMICRAFTER, DYNAMICRAFTER_256):
        conv_in = unet["input_blocks.0.0.weight"]
        unet["input_blocks.0.0.weight"] = conv_in[:, :LATENT_CHANNELS].contiguous()
        adapter["hfa.conv_z.weight"] = conv_in[:, LATENT_CHANNELS:].contiguous()
    adapter.update({f"projector.{name}": value for name, value in parts["projector"].items()})
    if layout != VIDEOCRAFTER2 and not parts["projector"]:
        _log.warning(
            "%s without its image projector (image_proj_model.*): the image stream cannot read pictures. %s", layout, _USE
        )
    used = {*used, *(prefix + key for key in source)}
    return ReadCheckpoint(
        layout=layout,
        unet=unet,
        adapter=adapter,
        config=settings(layout, adapter, state_dict),
        text_encoder=parts["text_encoder"],
        vae=parts["vae"],
        image_encoder=parts["image_encoder"],
        unused=tuple(key for key in state_dict if key not in used),
    )


def _is_unet(key: str) -> bool:
    own = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.", _FIRST_TRANSFORMER)
    return key.startswith(own) or bool(_FPS.fullmatch(key))


def _other_parts(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], set[str]]:
    """The parts around the UNet without their prefixes, and the keys of the file that they came from."""
    parts, used = {}, set()
    for name, (prefix, begins) in _OTHER_PARTS.items():
        part = {key: value for key, value in without_prefix(state_dict, prefix).items() if key.startswith(begins)}
        parts[name] = part
        used |= {prefix + key for key in part}
    return parts, used


def _layout(source: Mapping[str, Tensor]) -> str:
    """Which model the UNet is of, by its weights."""
    if any(_RELATIVE in key for key in source):
        raise ValueError(
            "this is VideoCrafter1 text-to-video, whose layers along time have relative positions that are not done here: "
            "use VideoCrafter2, or VideoCrafter1 image-to-video"
        )
    has_stream = any(".attn2.to_k_ip." in key for key in source)
    has_alpha = any(key.endswith(".attn2.alpha") for key in source)
    conv_in = source.get("input_blocks.0.0.weight")
    channels = None if conv_in is None else conv_in.shape[1]
    if not has_stream and not has_alpha and channels in (None, LATENT_CHANNELS):
        return VIDEOCRAFTER2
    if channels == LATENT_CHANNELS and not has_alpha:
        return VIDEOCRAFTER1
    if channels in (None, 2 * LATENT_CHANNELS) and has_stream:
        return DYNAMICRAFTER_256 if has_alpha else DYNAMICRAFTER
    stream = ("an image stream" if has_stream else "no image stream") + (" with learned weights" if has_alpha else "")
    raise ValueError(
        f"this looks like a VideoCrafter or DynamiCrafter model, but its first convolution takes {channels} channels and it has "
        f"{stream}: it is mixed from two models. {_USE}"
    )


def _place(key: str) -> tuple[str, str]:
    """(part, name) of a UNet key: part "base" with an LDM name, "adapter" with one of ours, or "" for a key without a place."""
    fps = _FPS.fullmatch(key)
    if fps:
        return "adapter", f"temporal.fps_embedding.{fps['name']}"
    if key.startswith(_FIRST_TRANSFORMER):
        return _in_transformer(FIRST, key.removeprefix(_FIRST_TRANSFORMER))
    match = _BLOCK.fullmatch(key)
    if match is None:
        return ("base", key) if key.startswith(("time_embed.", "out.")) else ("", key)
    block, place, name = match["block"], int(match["place"]), match["name"]
    upsampler = block.startswith("output_blocks.") and name.startswith("conv.")
    if block == "middle_block" and place == 3 or upsampler and place == 3:
        # The temporal transformer takes a place that SD does not have.
        place = 2
    elif place == 2:
        return _in_transformer(f"{block}.1", name)
    site = f"{block}.{place}"
    if _CONV in f".{name}":
        inner = conv_block_name(name.removeprefix(_CONV[1:]))
        return ("adapter", f"temporal.conv.{site}.{inner}") if inner else ("", key)
    stream = _STREAM.fullmatch(f"{site}.{name}")
    if stream:
        return "adapter", f"apa.{stream['site']}.{_STREAM_NAMES[stream['name']]}"
    return "base", f"{site}.{name}"


def _in_transformer(site: str, name: str) -> tuple[str, str]:
    inner = transformer_name(name)
    return ("adapter", f"temporal.transformer.{site}.{inner}") if inner else ("", name)


def _sort(source: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Base weights by LDM name, and the adapter."""
    unet: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    without_place = []
    for key, value in source.items():
        part, name = _place(key)
        if part == "base":
            unet[name] = value
        elif part == "adapter":
            # Convolutions along time alone: [C, C, 3, 1, 1] and, in the first transformer, [C, C, 1].
            adapter[name] = value.squeeze(-1) if value.ndim in (3, 5) else value
        else:
            without_place.append(key)
    check_places(layout, without_place, len(source), _USE)
    names = _shape(source)
    expected = _expected(names, unet, layout)
    check_complete(layout, expected, {**unet, **adapter}, _USE)
    extra = [key for key in (*unet, *adapter) if key not in expected]
    check_places(layout, extra, len(source), _USE)
    adapter = join_qkv(adapter)
    for site in [key.removesuffix(".to_k_image.weight") for key in adapter if key.endswith(".to_k_image.weight")]:
        alpha = adapter.pop(f"{site}.alpha", None)
        one = torch.ones(1, device=adapter[f"{site}.to_k_image.weight"].device)
        adapter[f"{site}.alpha_text"] = one
        # The released layer adds (1 + tanh(alpha)) times the image stream; without an alpha the factor is 1.
        adapter[f"{site}.alpha_image"] = one.clone() if alpha is None else 1.0 + torch.tanh(alpha.float().reshape(1))
    return unet, adapter


def _shape(keys: Collection[str]) -> UnetNames:
    """Shape of the UNet."""
    downsamplers = sorted({int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.", key))})
    blocks = 1 + max((int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d+)\.", key))), default=0)
    layers = (downsamplers[0] if downsamplers else blocks) - 1
    attention = {int(match[1]) for key in keys if (match := re.match(r"output_blocks\.(\d+)\.1\.transformer_blocks\.", key))}
    return UnetNames(len(downsamplers) + 1, layers, frozenset(block // (layers + 1) for block in attention))


def _expected(names: UnetNames, unet: Mapping[str, Tensor], layout: str) -> dict[str, None]:
    """LDM names of the UNet and adapter names (q, k and v apart) of everything that a model of this shape has."""
    blocks = transformer_blocks(unet)
    transformers = dict.fromkeys([FIRST, *(block.partition(".transformer_blocks.")[0] for block in blocks)])
    expected = names.required(unet)
    expected += [f"temporal.conv.{site}.{name}" for site in names.res_blocks() for name in required_in_conv_block()]
    expected += [f"temporal.transformer.{site}.{name}" for site in transformers for name in required_in_transformer()]
    expected += [f"temporal.fps_embedding.{layer}.{tensor}" for layer in (0, 2) for tensor in ("weight", "bias")]
    if layout != VIDEOCRAFTER2:
        stream = ["to_k_image.weight", "to_v_image.weight", *(["alpha"] if layout == DYNAMICRAFTER_256 else [])]
        expected += [f"apa.{block}.{name}" for block in blocks for name in stream]
    return dict.fromkeys(expected)


FAMILY_LVDM = Family("VideoCrafter or DynamiCrafter", is_lvdm, read_lvdm)
