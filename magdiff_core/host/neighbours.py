"""What other packs put into the cross-attention of the same model: found before ours, and said when set after ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from .blocks import WeighedCrossAttention

_log = logging.getLogger("magdiff")


def attention_key(site: str) -> tuple[str, int, int]:
    """Core's key of a replaced cross-attention: `input_blocks.4.1.transformer_blocks.0` -> ("input", 4, 0)."""
    name, index, *_ = site.split(".")
    block_index = int(site.rsplit(".", 1)[1])
    return ("middle", 0, block_index) if name == "middle_block" else (name.removesuffix("_blocks"), int(index), block_index)


def replacement_before(replaced: dict[tuple, Callable], site: str) -> Callable | None:
    """What core would call at `site` in the place of its own attention: an entry for the layer goes before one for the block."""
    key = attention_key(site)
    return replaced.get(key, replaced.get(key[:2]))


def say_replaced_attention(transformer_options: dict, sites: Iterable[str]) -> None:
    """Warn about replacements that another node set after the image stream was put on `sites`.

    One for the same layer has taken our place; one for the whole block never runs, because ours is for the layer.
    """
    replaced = transformer_options.get("patches_replace", {}).get("attn2", {})
    taken, unheard = [], []
    for site in sites:
        key = attention_key(site)
        ours, of_block = replaced.get(key), replaced.get(key[:2])
        if type(ours) is not WeighedCrossAttention:
            taken.append(replacement_before(replaced, site))
        elif of_block is not None and of_block is not ours.previous:
            unheard.append(of_block)
    if taken:
        _log.warning(
            "another node (%s) replaced %d cross-attentions after Apply MagDiff Adapter: the picture does not reach those layers. "
            "Put that node before Apply MagDiff Adapter, which then weighs it together with the picture",
            _whose(taken[0]),
            len(taken),
        )
    if unheard:
        _log.warning(
            "another node (%s) replaced %d cross-attentions after Apply MagDiff Adapter, and is not called there. "
            "Put that node before Apply MagDiff Adapter, which then weighs it together with the picture",
            _whose(unheard[0]),
            len(unheard),
        )


def _whose(function: Callable | None) -> str:
    return getattr(function, "__module__", None) or type(function).__module__
