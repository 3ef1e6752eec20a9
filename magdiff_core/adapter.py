"""The MagDiff adapter: every weight that the method adds to a base UNet, in one module named as the file is.

File keys (all parts optional; `<ResBlock>` and `<transformer block>` are LDM names such as `input_blocks.1.0` and
`input_blocks.1.1.transformer_blocks.0`):

    temporal.conv.<ResBlock>.layers.{0-3}.{norm,conv}.{weight,bias}          conv weight [C, C, 3, 1]
    temporal.attn.<transformer block>.{norm.weight,norm.bias,to_qkv.weight,to_out.weight,to_out.bias}
    temporal.<kind>.<layer>.*                                                follows a whole layer of the base: temporal/kinds.py
    temporal.fps_embedding.{0,2}.{weight,bias}                               frame rate in the time embedding
    apa.<transformer block>.{to_k_image.weight,to_v_image.weight,alpha_text,alpha_image}
    hfa.level.{1,2}.{conv_in,conv_out}.{weight,bias}, hfa.conv_z.weight      conv_z [C0, latent channels, 3, 3]
    projector.*                                                              alignment/projectors.py

`base.<LDM key>` entries (differences to weights of the base) are not part of the module: the host applies them as patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .alignment.apa import ImageStream
from .alignment.hfa import SubjectBranch
from .alignment.projectors import build_projector
from .config import FORMAT, FORMAT_VERSION, AdapterConfig, ImageEncoderConfig, ScheduleConfig
from .temporal.fps_embedding import FpsEmbedding
from .temporal.kinds import AFTER_LAYER
from .temporal.temp_attn import TempAttn
from .temporal.temp_conv import TempConv

__all__ = [
    "BASE_PREFIX",
    "FORMAT",
    "FORMAT_VERSION",
    "PARTS",
    "AdapterConfig",
    "ImageEncoderConfig",
    "MagDiffAdapter",
    "ScheduleConfig",
    "SiteTree",
    "Temporal",
    "adapter_from_state_dict",
]

BASE_PREFIX = "base."
PARTS = ("temporal.", "apa.", "hfa.", "projector.")


def _sites(keys: Iterable[str], prefix: str, suffix: str) -> list[str]:
    return [key[len(prefix) : -len(suffix)] for key in keys if key.startswith(prefix) and key.endswith(suffix)]


class _Under(dict):
    """The shapes under a prefix, without it; what is missing is named in full."""

    def __init__(self, shapes: Mapping[str, torch.Size], prefix: str):
        super().__init__((key[len(prefix) :], shape) for key, shape in shapes.items() if key.startswith(prefix))
        self.prefix = getattr(shapes, "prefix", "") + prefix

    def __missing__(self, key: str):
        raise KeyError(self.prefix + key)


class SiteTree(nn.Module):
    """Layers keyed by dotted LDM names: the state-dict keys are the names, and look-up is by the whole name."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        super().__init__()
        for site, layer in layers.items():
            parent: nn.Module = self
            *path, last = site.split(".")
            for name in path:
                if name not in parent._modules:
                    parent.add_module(name, nn.Module())
                parent = parent._modules[name]
            parent.add_module(last, layer)
        self.sites = tuple(layers)

    def find(self, site: str) -> nn.Module | None:
        """The layer of `site`, or None where there is none."""
        return self.get_submodule(site) if site in self.sites else None


class Temporal(nn.Module):
    """Everything that works along time.

    `conv`: Temp-Convs by ResBlock. `attn`: Temp-Attns by transformer block. One `SiteTree` for each other kind
    (`temporal.kinds.AFTER_LAYER`), under its name: layers by the layer of the base that they follow. `fps_embedding`, or None.
    """

    def __init__(
        self, conv: SiteTree, attn: SiteTree, after: Mapping[str, SiteTree] | None = None, fps_embedding: FpsEmbedding | None = None
    ):
        super().__init__()
        self.conv = conv
        self.attn = attn
        self.kinds = tuple(after or ())
        for kind, layers in (after or {}).items():
            self.add_module(kind, layers)
        self.fps_embedding = fps_embedding

    def layers_after(self, site: str) -> list[nn.Module]:
        """The layers that run after the whole layer `site` of the base, in the order of their kinds."""
        found = (self.get_submodule(kind).find(site) for kind in self.kinds)
        return [layer for layer in found if layer is not None]

    def after_sites(self) -> list[tuple[str, str]]:
        """Every (kind, site) of `layers_after`."""
        return [(kind, site) for kind in self.kinds for site in self.get_submodule(kind).sites]


class MagDiffAdapter(nn.Module):
    """The parts that a state dict holds; a part that it lacks is None (`temporal`, `apa`, `hfa`, `projector`)."""

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        config: AdapterConfig,
        operations=nn,
        dtype: torch.dtype | None = None,
        device=None,
    ):
        """Build the structure that `shapes` (key -> shape, without `base.*`) describes; weights come by `load_state_dict`."""
        super().__init__()
        self.config = config
        options = {"operations": operations, "dtype": dtype, "device": device}
        conv = {
            site: TempConv(
                shapes[f"temporal.conv.{site}.layers.0.norm.weight"][0], on_one_frame=config.temporal_on_one_frame, **options
            )
            for site in _sites(shapes, "temporal.conv.", ".layers.0.norm.weight")
        }
        attn = {
            site: TempAttn(shapes[f"temporal.attn.{site}.norm.weight"][0], **options)
            for site in _sites(shapes, "temporal.attn.", ".norm.weight")
        }
        after = {}
        for name, kind in AFTER_LAYER.items():
            of_kind = _Under(shapes, f"temporal.{name}.")
            sites = _sites(of_kind, "", f".{kind.marker}")
            if sites:
                layers = (kind.build(_Under(of_kind, f"{site}."), config.heads_of, **options) for site in sites)
                after[name] = SiteTree(dict(zip(sites, layers, strict=True)))
        fps_embedding = None
        if "temporal.fps_embedding.0.weight" in shapes:
            width, model_channels = shapes["temporal.fps_embedding.0.weight"]
            fps_embedding = FpsEmbedding(model_channels, width, **options)
        self.temporal = None
        if conv or attn or after or fps_embedding is not None:
            self.temporal = Temporal(SiteTree(conv), SiteTree(attn), after, fps_embedding)

        streams = {}
        for site in _sites(shapes, "apa.", ".to_k_image.weight"):
            channels, token_width = shapes[f"apa.{site}.to_k_image.weight"]
            streams[site] = ImageStream(token_width, channels, **options)
        self.apa = SiteTree(streams) if streams else None

        self.hfa = None
        if "hfa.conv_z.weight" in shapes:
            model_channels, latent_channels = shapes["hfa.conv_z.weight"][:2]
            affinity = bool(config.affinity)
            levels = [key for key in ("1", "2") if f"hfa.level.{key}.conv_in.weight" in shapes]
            hidden = [shapes[f"hfa.level.{key}.conv_in.weight"][0] for key in levels]
            self.hfa = SubjectBranch(latent_channels - int(affinity), model_channels, hidden, affinity, **options)

        self.projector = build_projector(_Under(shapes, "projector."), config.projector_heads, **options)


def adapter_from_state_dict(
    state_dict: Mapping[str, Tensor], config: AdapterConfig, operations=nn, dtype: torch.dtype | None = None, device=None
) -> MagDiffAdapter:
    """Build the adapter of `state_dict` and load its weights (shared, not copied, where dtype and device agree).

    `base.*` entries are left to the caller. Raises ValueError naming the keys when the tensors do not form whole layers.
    """
    weights = {key: value for key, value in state_dict.items() if not key.startswith(BASE_PREFIX)}
    if not any(key.startswith(PARTS) for key in weights):
        raise ValueError("no MagDiff part in this file: expected keys under " + ", ".join(part + "*" for part in PARTS))
    try:
        adapter = MagDiffAdapter({k: v.shape for k, v in weights.items()}, config, operations, dtype, device)
        # assign: the placeholders are dropped, and host layers that start without a weight get one.
        missing, unexpected = adapter.load_state_dict(weights, strict=False, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"damaged MagDiff adapter: its tensors do not fit together ({error})") from error
    if missing or unexpected:
        raise ValueError(f"damaged MagDiff adapter: missing keys {missing[:5]}, keys without a place {unexpected[:5]}")
    return adapter
