"""A parity file: weights, inputs and stored results, with a JSON beside it that describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

WEIGHTS = "sd."
INPUTS = "in."
_LETTERED = re.compile(r"[A-Z]\.(?P<kind>sd|ctrl|unet|in)\.")
"""A file of several parts has a letter before each name; weights and inputs keep their whole names then."""


@dataclass(frozen=True)
class Fixture:
    """`weights`: state dict in the published layout. `inputs`: by name without "in.". `stored`: every other tensor by its full
    name. `meta`: the `meta` object of the JSON."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    stored: dict[str, Tensor]
    meta: dict


def load_fixture(path: str | Path) -> Fixture:
    """Read FILE.safetensors and FILE.json; floats become float32. Raises ValueError when one of them cannot be used."""
    path = Path(path)
    description = path.with_suffix(".json")
    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:
        raise ValueError(f"cannot read {path} as safetensors: {error}") from error
    try:
        meta = json.loads(description.read_text(encoding="utf-8"))["meta"]
    except FileNotFoundError:
        raise ValueError(f"{description} is missing: it says how {path.name} was made") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{description} is not a JSON object with an entry "meta": {error}') from error
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}

    weights, inputs, stored = part_of(tensors, WEIGHTS), part_of(tensors, INPUTS), {}
    for key, value in tensors.items():
        lettered = _LETTERED.match(key)
        if lettered:
            (inputs if lettered["kind"] == "in" else weights)[key] = value
        elif not key.startswith((WEIGHTS, INPUTS)):
            stored[key] = value
    return Fixture(weights, inputs, stored, meta)


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
