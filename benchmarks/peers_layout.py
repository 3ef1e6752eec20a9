"""Random weights in the shapes of two published files: IP-Adapter plus, and what DynamiCrafter-256 adds to SD2.1."""

from __future__ import annotations

import torch
from torch import Tensor

from magdiff_core.host import session

session.start()

from comfy.ldm.modules.attention import SpatialTransformer  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock  # noqa: E402

from magdiff_core.adapter import MagDiffAdapter  # noqa: E402
from magdiff_core.alignment.apa import AlphaSettings  # noqa: E402
from magdiff_core.host.adapter_file import LoadedAdapter, adapter_patcher  # noqa: E402
from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens, attach  # noqa: E402
from magdiff_core.weights.lvdm_settings import (  # noqa: E402
    DYNAMICRAFTER_256,
    FIRST_HEADS,
    HEAD_WIDTH,
    TOKENS_PER_FRAME,
    settings,
)

QUERIES = 16
DEPTH = 4
INNER = 768
"""Width inside the attentions of both image projections, 12 heads of 64."""
SCALE = 0.02
# Level of each cross-attention in the order of an IP-Adapter file: down, up, middle.
_LEVELS = (0, 0, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3)


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: SCALE * torch.randn(shape) for key, shape in shapes.items()}


def _resampler(width: int, inner: int, queries: int, image: int, text: int) -> dict[str, tuple[int, ...]]:
    shapes = {"latents": (1, queries, width), "proj_in.weight": (width, image), "proj_in.bias": (width,)}
    for layer in (f"layers.{i}" for i in range(DEPTH)):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        shapes |= {f"{layer}.0.to_q.weight": (inner, width), f"{layer}.0.to_kv.weight": (2 * inner, width)}
        shapes |= {f"{layer}.0.to_out.weight": (width, inner)}
        shapes |= {f"{layer}.1.1.weight": (4 * width, width), f"{layer}.1.3.weight": (width, 4 * width)}
    shapes |= {"proj_out.weight": (text, width), "proj_out.bias": (text,), "norm_out.weight": (text,), "norm_out.bias": (text,)}
    return shapes


def ip_adapter_plus(widths: tuple[int, ...], text: int, image: int, projection: int) -> dict[str, Tensor]:
    """A whole file for SD1.5 with these widths of levels, text, image encoder and projection."""
    shapes = {f"image_proj.{key}": shape for key, shape in _resampler(projection, INNER, QUERIES, image, text).items()}
    for number, level in enumerate(_LEVELS):
        shapes |= {f"ip_adapter.{2 * number + 1}.{name}.weight": (widths[level], text) for name in ("to_k_ip", "to_v_ip")}
    return _random(shapes)


def dynamicrafter(unet: torch.nn.Module, text: int, image: int, frames: int) -> LoadedAdapter:
    """Everything that DynamiCrafter-256 adds to `unet`, an SD2.1 UNet of ComfyUI, in the structure that its files are run in.

    `frames`: of a clip, each of which reads 16 tokens of the picture (released: 16).
    """
    first = unet.model_channels
    shapes = {
        "hfa.conv_z.weight": (first, 4, 3, 3),
        "temporal.fps_embedding.0.weight": (4 * first, first),
        **_temporal_transformer("input_blocks.0.0", first, FIRST_HEADS * HEAD_WIDTH),
        **{f"projector.{key}": shape for key, shape in _resampler(text, INNER, frames * TOKENS_PER_FRAME, image, text).items()},
    }
    for site, layer in unet.named_modules():
        if isinstance(layer, ResBlock):
            shapes[f"temporal.conv.{site}.layers.0.norm.weight"] = (layer.out_channels,)
        elif isinstance(layer, SpatialTransformer):
            shapes |= _temporal_transformer(site, layer.in_channels, layer.in_channels)
            shapes[f"apa.{site}.transformer_blocks.0.to_k_image.weight"] = (layer.in_channels, text)
    placeholders = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = settings(DYNAMICRAFTER_256, placeholders, {})
    with torch.device("meta"):
        whole = MagDiffAdapter({key: value.shape for key, value in placeholders.items()}, config)
    return adapter_patcher(_random({key: value.shape for key, value in whole.state_dict().items()}), config)


def _temporal_transformer(site: str, channels: int, inner: int) -> dict[str, tuple[int, ...]]:
    prefix = f"temporal.transformer.{site}"
    return {
        f"{prefix}.proj_in.weight": (inner, channels),
        f"{prefix}.blocks.0.norm1.weight": (inner,),
        f"{prefix}.blocks.0.ff.out.weight": (inner, 4 * inner),
    }


def dynamicrafter_conditionings(
    frames: int, latent: int, text: tuple[int, int], patches: tuple[int, int]
) -> tuple[list, list]:
    """Positive and negative with one picture: a grey one for the negative's tokens, and its latent in every frame.

    `text`, `patches`: tokens and width of each.
    """
    tokens = SubjectTokens({"last": torch.randn(1, 2, *patches)}, black_entry=False, negative_entry=True)
    latents = SubjectLatents((torch.randn(1, 2, 4, latent, latent),), frames, GENERATE)
    return tuple(
        attach([[torch.randn(1, *text), {}]], negative, tokens=tokens, latents=latents, alphas=AlphaSettings())
        for negative in (False, True)
    )
