"""The MagDiff adapter: every weight that the method adds to a base UNet, in one module named as the file is.

File keys (all parts optional; `<ResBlock>` and `<transformer block>` are LDM names such as `input_blocks.1.0` and
`input_blocks.1.1.transformer_blocks.0`):

    temporal.conv.<ResBlock>.layers.{0-3}.{norm,conv}.{weight,bias}          conv weight [C, C, 3, 1]
    temporal.attn.<transformer block>.{norm.weight,norm.bias,to_qkv.weight,to_out.weight,to_out.bias}
    apa.<transformer block>.{to_k_image.weight,to_v_image.weight,alpha_text,alpha_image}
    hfa.level.{1,2}.{conv_in,conv_out}.{weight,bias}, hfa.conv_z.weight      conv_z [C0, 4, 3, 3]
    projector.*                                                              the Resampler, names of the released code

`base.<LDM key>` entries (differences to weights of the base) are not part of the module: the host applies them as patches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor, nn

from .alignment.apa import ImageStream
from .alignment.hfa import SubjectBranch
from .alignment.resampler import Resampler
from .temporal.temp_attn import TempAttn
from .temporal.temp_conv import TempConv

FORMAT = "magdiff_adapter"
FORMAT_VERSION = "1"
BASE_PREFIX = "base."
PARTS = ("temporal.", "apa.", "hfa.", "projector.")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """How the picture must be encoded: `width` of the tokens, hidden `layer` ("last" or "penultimate"), whether the picture is
    centre-cropped to a square, and the order of its colour `channels` ("rgb" or "bgr", as the weights were trained)."""

    width: int = 1280
    layer: str = "last"
    crop: bool = True
    channels: str = "bgr"


@dataclass(frozen=True)
class AdapterConfig:
    """Facts about an adapter that its tensors do not tell. Stored as JSON under `config` in the file's metadata.

    `base`: family of the base in words. `prediction`: "eps" or "v". `latent_scale`: factor of the base's VAE latents.
    `frames`: clip length of the training. `projector_heads`: attention heads of the Resampler. `clip_norm`: GroupNorm of
    ResBlocks and of the last norm runs over the clip. `licence`, `trained_from`: words for people.
    `base_hashes`: LDM key -> hash of the base tensor that `base.<key>` is a difference to.
    """

    base: str = "SD2.1"
    prediction: str = "eps"
    latent_scale: float = 0.18215
    frames: int = 8
    projector_heads: int = 12
    clip_norm: bool = True
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    licence: str = ""
    trained_from: str = ""
    base_hashes: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file: `format`, `format_version` and `config`."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> AdapterConfig:
        """Read `to_metadata` back. Raises ValueError when the format or its version is not ours, or `config` is not readable."""
        metadata = metadata or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"not a MagDiff adapter: metadata format is {metadata.get('format')!r}, expected {FORMAT!r}")
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"MagDiff adapter of format version {metadata.get('format_version')!r}: this pack reads "
                f"version {FORMAT_VERSION}, update the pack"
            )
        try:
            stored = dict(json.loads(metadata["config"]))
            encoder = ImageEncoderConfig(**_known(ImageEncoderConfig, stored.pop("image_encoder", {})))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged MagDiff adapter: the config in its metadata cannot be read ({error!r})") from error
        return cls(image_encoder=encoder, **_known(cls, stored))


def _known(kind: type, stored: Mapping) -> dict:
    """What `kind` has a field for: a newer pack may have written more."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in dict(stored).items() if name in names}


def _sites(keys: Iterable[str], prefix: str, suffix: str) -> list[str]:
    return [key[len(prefix) : -len(suffix)] for key in keys if key.startswith(prefix) and key.endswith(suffix)]


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
    """Temp-Convs by ResBlock and Temp-Attns by transformer block."""

    def __init__(self, conv: SiteTree, attn: SiteTree):
        super().__init__()
        self.conv = conv
        self.attn = attn


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
            site: TempConv(shapes[f"temporal.conv.{site}.layers.0.norm.weight"][0], **options)
            for site in _sites(shapes, "temporal.conv.", ".layers.0.norm.weight")
        }
        attn = {
            site: TempAttn(shapes[f"temporal.attn.{site}.norm.weight"][0], **options)
            for site in _sites(shapes, "temporal.attn.", ".norm.weight")
        }
        self.temporal = Temporal(SiteTree(conv), SiteTree(attn)) if conv or attn else None

        streams = {}
        for site in _sites(shapes, "apa.", ".to_k_image.weight"):
            channels, token_width = shapes[f"apa.{site}.to_k_image.weight"]
            streams[site] = ImageStream(token_width, channels, **options)
        self.apa = SiteTree(streams) if streams else None

        self.hfa = None
        if "hfa.conv_z.weight" in shapes:
            model_channels, latent_channels = shapes["hfa.conv_z.weight"][:2]
            levels = [key for key in ("1", "2") if f"hfa.level.{key}.conv_in.weight" in shapes]
            hidden = [shapes[f"hfa.level.{key}.conv_in.weight"][0] for key in levels]
            self.hfa = SubjectBranch(latent_channels, model_channels, hidden, **options)

        self.projector = None
        if "projector.latents" in shapes:
            _, queries, width = shapes["projector.latents"]
            inner = shapes["projector.layers.0.0.to_q.weight"][0]
            if inner % config.projector_heads:
                raise ValueError(
                    f"the config of this adapter names {config.projector_heads} projector heads, "
                    f"which do not divide the projector's {inner} channels"
                )
            self.projector = Resampler(
                image_width=shapes["projector.proj_in.weight"][1],
                width=width,
                token_width=shapes["projector.proj_out.weight"][0],
                queries=queries,
                depth=len(_sites(shapes, "projector.layers.", ".0.to_q.weight")),
                heads=config.projector_heads,
                inner=inner,
                feed_forward=shapes["projector.layers.0.1.1.weight"][0],
                **options,
            )


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
