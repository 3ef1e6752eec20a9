"""One adapter out of parts of several: layers along time, image stream and subject branch, each from the file that has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapter import BASE_PREFIX
from ..config import AdapterConfig

TEMPORAL = "temporal"
IMAGE = "image"
SUBJECT = "subject"
ZERO = "zero"
"""In the place of a file for the subject branch: one whose weights are 0, so that it can be trained and until then does nothing."""

PART_KEYS = {TEMPORAL: ("temporal.",), IMAGE: ("apa.", "projector."), SUBJECT: ("hfa.",)}
WORDS = {TEMPORAL: "layers along time (temporal.*)", IMAGE: "image stream (apa.*)", SUBJECT: "subject branch (hfa.*)"}
_NEEDED = {TEMPORAL: "temporal.", IMAGE: "apa.", SUBJECT: "hfa.conv_z."}
_OWN_FIELDS = {
    IMAGE: ("image_encoder", "projector_heads", "image_tokens", "tokens_per_frame", "negative_picture"),
    SUBJECT: ("subject_frames", "affinity"),
}
"""Fields of the config that describe a part; all others follow the layers along time, or the first part that is there."""
PROVENANCE = "parts"
"""Entry of the metadata: JSON, part -> file, bytes, tensors, parameters, base, licence, trained_from."""


@dataclass(frozen=True)
class Source:
    """An adapter file that was read: its `name` and size in `bytes`, weights as in `magdiff_core.adapter`, configuration."""

    name: str
    bytes: int
    weights: Mapping[str, Tensor]
    config: AdapterConfig


@dataclass(frozen=True)
class Composed:
    """Weights and configuration of the new adapter, and where each part came from (as in `PROVENANCE`)."""

    weights: dict[str, Tensor]
    config: AdapterConfig
    provenance: dict[str, dict]

    def to_metadata(self) -> dict[str, str]:
        """The metadata of the adapter's file."""
        return {**self.config.to_metadata(), PROVENANCE: json.dumps(self.provenance, sort_keys=True)}


def parts_of(keys: Iterable[str]) -> list[str]:
    """The parts that an adapter with these keys holds."""
    keys = list(keys)
    return [part for part, needed in _NEEDED.items() if any(key.startswith(needed) for key in keys)]


def compose(sources: Mapping[str, Source], zero_subject: bool = False) -> Composed:
    """Take each part of `sources` (part -> the adapter that it comes from) into one adapter.

    `zero_subject`: add a subject branch of zeros, which changes nothing. Differences to base weights (`base.*`) are not taken: they
    belong to one whole model.

    Raises ValueError when nothing is given, a file lacks its part, or the parts were trained for different predictions, bases,
    latent scales or widths.
    """
    if not sources:
        raise ValueError("no file is chosen: give at least one of temporal_from, image_from and subject_from")
    weights: dict[str, Tensor] = {}
    provenance = {}
    for part in (part for part in PART_KEYS if part in sources):
        source = sources[part]
        _check_has(source, part)
        taken = {key: value for key, value in source.weights.items() if key.startswith(PART_KEYS[part])}
        weights.update(taken)
        provenance[part] = {
            "file": source.name,
            "bytes": source.bytes,
            "tensors": len(taken),
            "parameters": sum(value.numel() for value in taken.values()),
            "base": source.config.base,
            "licence": source.config.licence or "none stated",
            "trained_from": source.config.trained_from,
        }
    _check_agree(sources)
    if zero_subject:
        if SUBJECT in sources:
            raise ValueError("a subject branch from a file and one of zeros: choose one of them")
        conv_z = _zero_branch(weights)
        weights["hfa.conv_z.weight"] = conv_z
        provenance[SUBJECT] = {"file": ZERO, "bytes": 0, "tensors": 1, "parameters": conv_z.numel()}
    _check_widths(weights)
    return Composed(weights, _config(sources, provenance), provenance)


def _check_has(source: Source, part: str) -> None:
    found = parts_of(source.weights)
    if part not in found:
        others = ", ".join(WORDS[other] for other in found) or "no part of an adapter"
        raise ValueError(f"{source.name} holds no {WORDS[part]}; it holds {others}: choose another file for {part}_from")


def _check_agree(sources: Mapping[str, Source]) -> None:
    (first_part, first), *others = sources.items()
    for part, source in others:
        for what, one, two in (
            ("prediction", first.config.prediction, source.config.prediction),
            ("base", _family(first.config.base), _family(source.config.base)),
            ("scale of latents", first.config.latent_scale, source.config.latent_scale),
        ):
            if one and two and one != two:
                raise ValueError(
                    f"these parts do not fit together: {first.name} ({first_part}_from) was trained for {what} {one}, "
                    f"{source.name} ({part}_from) for {two}. Take both from models of one kind"
                )


def _family(base: str) -> str | None:
    """`SD2.1` out of a base in words, or None where the words tell no version of Stable Diffusion."""
    match = re.search(r"(?:SD|Stable Diffusion) ?(\d\.\d)", base)
    return f"SD{match[1]}" if match else None


_WIDTH = (
    # where a key shows how wide the stream is, and which block it belongs to
    re.compile(r"apa\.(?P<site>.+)\.to_k_image\.weight"),
    re.compile(r"temporal\.\w+\.(?P<site>.+)\.norm\.weight"),
)


def _widths(weights: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Block -> key -> width of the stream there. Only what follows a transformer or is in one has the width of the same place."""
    found: dict[str, dict[str, int]] = {}
    for key, value in weights.items():
        for pattern in _WIDTH:
            match = pattern.fullmatch(key)
            if match:
                block = ".".join(match["site"].split(".")[:2])
                found.setdefault(block, {})[key] = value.shape[0]
    return found


def _check_widths(weights: Mapping[str, Tensor]) -> None:
    for block, widths in _widths(weights).items():
        if len(set(widths.values())) > 1:
            words = ", ".join(f"{key} {width}" for key, width in list(widths.items())[:4])
            raise ValueError(f"these parts do not fit together: at {block} their widths differ ({words}). Take them from one base")
    first, conv_z = _first_width(weights), weights.get("hfa.conv_z.weight")
    if None not in (first, conv_z) and conv_z.shape[0] != first:
        raise ValueError(
            f"these parts do not fit together: the subject branch is for a model of {conv_z.shape[0]} channels, the others "
            f"for one of {first}"
        )


def _first_width(weights: Mapping[str, Tensor]) -> int | None:
    """Channels after the first convolution: those of the first block behind it."""
    widths = _widths(weights).get("input_blocks.1", {})
    return next(iter(widths.values()), None)


def _zero_branch(weights: Mapping[str, Tensor]) -> Tensor:
    channels = _first_width(weights)
    if channels is None:
        raise ValueError(
            "a subject branch of zeros takes its width from the first block of the other parts, which have none there: "
            "choose a file for temporal_from or image_from"
        )
    return torch.zeros(channels, 4, 3, 3, dtype=next(iter(weights.values())).dtype)


def _config(sources: Mapping[str, Source], provenance: Mapping[str, Mapping]) -> AdapterConfig:
    first = next(sources[part].config for part in PART_KEYS if part in sources)
    changes = {
        name: getattr(sources[part].config, name) for part, names in _OWN_FIELDS.items() if part in sources for name in names
    }
    if SUBJECT not in sources:
        # Of zeros, or none: it has no channel for it.
        changes["affinity"] = ()
    from_files = {part: entry for part, entry in provenance.items() if entry["file"] != ZERO}
    licences = {part: entry["licence"] for part, entry in from_files.items()}
    one = set(licences.values())
    return replace(
        first,
        **changes,
        base_hashes={},
        licence=one.pop() if len(one) == 1 else "; ".join(f"{part}: {licence}" for part, licence in licences.items()),
        trained_from="; ".join(f"{part}: {entry['trained_from'] or entry['file']}" for part, entry in from_files.items()),
    )


def left_out(source: Source) -> int:
    """How many differences to base weights `source` has: no part takes them."""
    return sum(key.startswith(BASE_PREFIX) for key in source.weights)
