"""Which layout a file has, and its weights in the adapter format."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from ..adapter import FORMAT, PARTS, AdapterConfig
from .families import families_of, read_checkpoint
from .foreign import describe

_log = logging.getLogger("magdiff")

ADAPTER = "adapter"
RELEASED = "released"
"""A published file of any family in `families.FAMILIES`."""


def kind_of(keys: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str | None:
    """`ADAPTER` for our own format, `RELEASED` for a published file of a known layout, None for any other."""
    if metadata.get("format") == FORMAT:
        return ADAPTER
    return RELEASED if families_of(keys) else None


def read_adapter_weights(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Weights named as in `magdiff_core.adapter`, and their configuration.

    Takes our own format, published files that add to a base and, out of a published whole model, what it adds to a base. Raises
    ValueError for any other file, saying what it seems to be.
    """
    kind = kind_of(state_dict, metadata)
    if kind == ADAPTER:
        return dict(state_dict), AdapterConfig.from_metadata(metadata)
    if kind == RELEASED:
        try:
            released = read_checkpoint(state_dict)
        except ValueError as error:
            names = ", ".join(family.name for family in families_of(state_dict))
            raise ValueError(f"this file holds no MagDiff adapter that is whole ({names}): {error}") from error
        if released.unet:
            _log.warning(
                "this is a whole %s model: only its %d adapter tensors are used, its own fine-tuned base is not. "
                "Load MagDiff Checkpoint uses both",
                released.layout,
                len(released.adapter),
            )
        elif released.unused:
            # The rest of a whole model is not wanted here anyhow.
            _log.warning(
                "%d of its tensors are not used, such as %s: the base keeps its own weights for them",
                len(released.unused),
                released.unused[0],
            )
        return released.adapter, released.config
    if any(key.startswith(PARTS) for key in state_dict):
        raise ValueError(
            f"this file holds adapter weights, but its metadata has no format {FORMAT!r}: it was re-saved by a program that drops "
            "metadata. Use the original file"
        )
    raise ValueError(f"this file holds no MagDiff adapter: {describe(state_dict)}")
