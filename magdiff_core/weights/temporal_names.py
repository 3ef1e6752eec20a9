"""Names inside the layers along time of published models, and what they are called in an adapter.

ModelScope, VideoCrafter, DynamiCrafter, AnimateDiff and `diffusers` all wrote the same two layers: a convolution block of four
norm-and-convolution pairs, and a transformer of two self-attentions and a gated feed-forward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

CONV_BLOCK = {
    f"conv{layer + 1}.{place}": f"layers.{layer}.{name}"
    for layer in range(4)
    # A dropout before the later convolutions shifts their number.
    for place, name in ((0, "norm"), (2 if layer == 0 else 3, "conv"))
}
"""Module inside a published Temp-Conv -> module inside `temporal.conv.<site>`."""

_IN_BLOCK = re.compile(r"transformer_blocks\.(?P<block>\d+)\.(?P<rest>.+)")
_BLOCK_NAMES = {
    **{f"norm{i}.{tensor}": f"norm{i}.{tensor}" for i in (1, 2, 3) for tensor in ("weight", "bias")},
    **{f"attn{i}.to_{x}.weight": f"attn{i}.{x}" for i in (1, 2) for x in "qkv"},
    **{f"attn{i}.to_out.0.{tensor}": f"attn{i}.to_out.{tensor}" for i in (1, 2) for tensor in ("weight", "bias")},
    **{f"ff.net.0.proj.{tensor}": f"ff.proj.{tensor}" for tensor in ("weight", "bias")},
    **{f"ff.net.2.{tensor}": f"ff.out.{tensor}" for tensor in ("weight", "bias")},
}
_AROUND = tuple(f"{name}.{tensor}" for name in ("norm", "proj_in", "proj_out") for tensor in ("weight", "bias"))
QKV = re.compile(r"(?P<attention>.+\.attn\d)\.q")


def conv_block_name(published: str) -> str | None:
    """Name inside a published Temp-Conv (`conv1.0.weight`) -> ours (`layers.0.norm.weight`); None for a name that it lacks."""
    module, _, tensor = published.rpartition(".")
    return f"{CONV_BLOCK[module]}.{tensor}" if module in CONV_BLOCK and tensor in ("weight", "bias") else None


def conv_block_weight(weight: Tensor) -> Tensor:
    """A convolution `[C, C, 3, 1, 1]` over (F, h, w) -> `[C, C, 3, 1]` over (F, h * w); anything else as it is."""
    return weight.squeeze(-1) if weight.ndim == 5 else weight


def transformer_name(published: str) -> str | None:
    """Name inside a published temporal transformer -> ours, with `q`, `k`, `v` still apart; None for a name that it lacks."""
    if published in _AROUND:
        return published
    match = _IN_BLOCK.fullmatch(published)
    if match is None or match["rest"] not in _BLOCK_NAMES:
        return None
    return f"blocks.{match['block']}.{_BLOCK_NAMES[match['rest']]}"


def transformer_weight(name: str, weight: Tensor) -> Tensor:
    """A projection `[C, C, 1]` (a convolution of width 1) -> `[C, C]`; anything else as it is."""
    return weight.squeeze(-1) if name.startswith("proj_") and weight.ndim == 3 else weight


def required_in_transformer(depth: int = 1) -> list[str]:
    """Our names of everything in a temporal transformer, with `q`, `k`, `v` still apart."""
    return [*_AROUND, *(f"blocks.{block}.{name}" for block in range(depth) for name in _BLOCK_NAMES.values())]


def required_in_conv_block() -> list[str]:
    """Our names of everything in a Temp-Conv."""
    return [f"{module}.{tensor}" for module in CONV_BLOCK.values() for tensor in ("weight", "bias")]


def join_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each `<attention>.q`, `.k`, `.v` of `weights` joined to `<attention>.to_qkv.weight`; the rest as it is."""
    joined = dict(weights)
    for key in weights:
        match = QKV.fullmatch(key)
        if match:
            parts = [joined.pop(f"{match['attention']}.{x}") for x in "qkv"]
            joined[f"{match['attention']}.to_qkv.weight"] = torch.cat(parts)
    return joined
