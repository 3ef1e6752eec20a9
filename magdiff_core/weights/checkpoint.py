"""What a reader of a published file gives back, and how the table of families holds the readers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..config import AdapterConfig


@dataclass(frozen=True)
class ReadCheckpoint:
    """The parts of one file, each named as its reader wants it; an empty dict where the file lacks the part.

    `layout`: the model in words. `unet`: LDM names without prefix, first convolution cut to 4 channels; empty for a file that adds
    to a base. `adapter`: as in `magdiff_core.adapter`. `text_encoder`: transformers' names (`text_model.*`) or OpenCLIP's
    (`transformer.resblocks.*`). `vae`: diffusers or LDM names, as found. `image_encoder`: OpenCLIP's (`visual.*`). `unused`:
    keys of the file that are left out on purpose.
    """

    layout: str
    unet: dict[str, Tensor]
    adapter: dict[str, Tensor]
    config: AdapterConfig
    text_encoder: dict[str, Tensor] = field(default_factory=dict)
    vae: dict[str, Tensor] = field(default_factory=dict)
    image_encoder: dict[str, Tensor] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Files of one published layout. `recognises(keys)` is narrow and cheap; `read(state_dict)` takes such a file apart and raises
    ValueError, saying what is missing and what to use, for one that is not whole or mixed with another model."""

    name: str
    recognises: Callable[[Collection[str]], bool]
    read: Callable[[Mapping[str, Tensor]], ReadCheckpoint]


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def check_places(layout: str, without_place: list[str], total: int, use: str) -> None:
    """Raise ValueError when keys of a file have no place in `layout`."""
    if without_place:
        raise ValueError(
            f"this looks like {layout}, but {len(without_place)} of its {total} UNet keys are not part of that layout, such as "
            f"{without_place[0]}: it is of another version or mixed with another model. {use}"
        )


def check_complete(layout: str, expected: Collection[str], found: Collection[str], use: str) -> None:
    """Raise ValueError when keys that `layout` must have are missing."""
    missing = [key for key in expected if key not in found]
    if missing:
        raise ValueError(
            f"this looks like {layout}, but {len(missing)} of its weights are missing, such as {missing[0]} (name in "
            f"SD's UNet or in an adapter): the file is a part of a checkpoint or was cut. {use}"
        )
