"""A node of the pack called in this process, the way ComfyUI calls it."""

from __future__ import annotations

from collections.abc import Mapping


def call_node(kinds: Mapping[str, type], node: str, **inputs: object) -> tuple:
    """Outputs of a node of `kinds` (classes by node id); inputs that are not given take the defaults of its schema."""
    kind = kinds[node]
    defaults = {
        field.id: field.default
        for field in kind.GET_SCHEMA().inputs
        if not field.optional and getattr(field, "default", None) is not None
    }
    return kind.execute(**{**defaults, **inputs}).args
