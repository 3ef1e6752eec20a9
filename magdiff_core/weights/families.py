"""The table of published layouts that are read, each recognised by its keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from .animatediff import FAMILY_ANIMATEDIFF
from .checkpoint import Family, ReadCheckpoint
from .ip_adapter import FAMILY_IP_ADAPTER
from .lvdm import FAMILY_LVDM
from .modelscope import FAMILY_MODELSCOPE
from .pia import FAMILY_PIA
from .released import FAMILY_RELEASED

FAMILIES: tuple[Family, ...] = (
    FAMILY_RELEASED,
    FAMILY_LVDM,
    FAMILY_MODELSCOPE,
    FAMILY_ANIMATEDIFF,
    FAMILY_PIA,
    FAMILY_IP_ADAPTER,
)


def families_of(keys: Collection[str]) -> list[Family]:
    """Every family that a file with these keys belongs to: one for a file as it was published."""
    return [family for family in FAMILIES if family.recognises(keys)]


def read_checkpoint(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint | None:
    """Take a published file apart; None when no family recognises it.

    Raises ValueError for a file of two families, with parts missing, or with keys that have no place.
    """
    found = families_of(state_dict)
    if not found:
        return None
    if len(found) > 1:
        names = " and of ".join(family.name for family in found)
        raise ValueError(f"this file holds weights of {names}: it was put together from several. Use each as it was published")
    return found[0].read(state_dict)
