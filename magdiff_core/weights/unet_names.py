"""Names of a Stable Diffusion UNet: from diffusers' (released MagDiff and VidRD code) to LDM's (ComfyUI)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
_TRANSFORMER_BLOCK = (
    *(f"attn{i}.{name}" for i in (1, 2) for name in _ATTENTION),
    *(f"{name}.{tensor}" for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2") for tensor in ("weight", "bias")),
)
_LAYER = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|temp_convs|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)


@dataclass(frozen=True)
class UnetNames:
    """Key map of one UNet: its number of `levels`, `layers` per level, and the up levels that have transformers."""

    levels: int
    layers: int
    up_levels_with_attention: frozenset[int]

    @classmethod
    def of(cls, keys: Iterable[str]) -> UnetNames:
        """Read the shape off diffusers names (without a prefix)."""
        found = [match for match in map(_LAYER.fullmatch, keys) if match]
        levels = [int(m["level"]) for m in found if m["side"]]
        layers = [int(m["index"]) for m in found if m["side"] == "down" and m["kind"] == "resnets"]
        attention = (int(m["level"]) for m in found if m["side"] == "up" and m["kind"] == "attentions")
        return cls(max(levels, default=-1) + 1, max(layers, default=-1) + 1, frozenset(attention))

    def res_blocks(self) -> list[str]:
        """LDM names of all ResBlocks that a UNet of this shape has."""
        down = [f"input_blocks.{1 + (self.layers + 1) * b + i}.0" for b in range(self.levels) for i in range(self.layers)]
        up = [f"output_blocks.{i}.0" for i in range(self.levels * (self.layers + 1))]
        return [*down, "middle_block.0", "middle_block.2", *up]

    def required(self, found: Mapping[str, Tensor]) -> list[str]:
        """LDM names that a UNet of this shape must have. `found` (by LDM name) tells where widths change and transformers are."""
        modules = [*_OUTSIDE_BLOCKS.values()]
        for site in self.res_blocks():
            modules += [f"{site}.{part}" for part in _RES_BLOCK.values() if part != "skip_connection"]
            norms = [found.get(f"{site}.{part}.weight") for part in ("in_layers.0", "out_layers.0")]
            if None not in norms and norms[0].shape != norms[1].shape:
                modules.append(f"{site}.skip_connection")
        for level in range(self.levels - 1):
            modules.append(self.ldm(f"down_blocks.{level}.downsamplers.0.conv.weight").removesuffix(".weight"))
            modules.append(self.ldm(f"up_blocks.{level}.upsamplers.0.conv.weight").removesuffix(".weight"))
        blocks = transformer_blocks(found)
        for transformer in sorted({block.partition(".transformer_blocks.")[0] for block in blocks}):
            modules += [f"{transformer}.{part}" for part in ("norm", "proj_in", "proj_out")]
        whole = [f"{module}.{tensor}" for module in modules for tensor in ("weight", "bias")]
        return whole + [f"{block}.{name}" for block in blocks for name in _TRANSFORMER_BLOCK]

    def ldm(self, key: str) -> str | None:
        """The LDM name of `key`; None where LDM has no such layer.

        `temp_convs.L.<rest>` becomes `<ResBlock>.temp_conv.<rest>`: it belongs to the ResBlock of the same index. Names inside
        transformers are the same in both, additions to them included.
        """
        module, _, tensor = key.rpartition(".")
        if module in _OUTSIDE_BLOCKS:
            return f"{_OUTSIDE_BLOCKS[module]}.{tensor}"
        match = _LAYER.fullmatch(key)
        if match is None:
            return None
        kind, index, rest = match["kind"], int(match["index"]), match["rest"]
        level = int(match["level"] or 0)
        if match["side"] is None:
            block = "middle_block"
            place = 1 if kind == "attentions" else 2 * index
        elif match["side"] == "down":
            block = f"input_blocks.{(self.layers + 1) * level + (self.layers if kind == 'downsamplers' else index) + 1}"
            place = 1 if kind == "attentions" else 0
        else:
            block = f"output_blocks.{(self.layers + 1) * level + (self.layers if kind == 'upsamplers' else index)}"
            upsampler_place = 2 if level in self.up_levels_with_attention else 1
            place = {"attentions": 1, "upsamplers": upsampler_place}.get(kind, 0)
        if kind == "resnets":
            module, _, tensor = rest.rpartition(".")
            return f"{block}.{place}.{_RES_BLOCK[module]}.{tensor}" if module in _RES_BLOCK else None
        if kind == "downsamplers":
            rest = rest.replace("conv.", "op.", 1)
        if kind == "temp_convs":
            rest = f"temp_conv.{rest}"
        return f"{block}.{place}.{rest}"


def transformer_blocks(keys: Iterable[str]) -> list[str]:
    """LDM names of the transformer blocks that `keys` belong to, sorted."""
    return sorted({match[0] for key in keys if (match := re.match(r".+\.transformer_blocks\.\d+(?=\.)", key))})
