"""Results that do not change from step to step, kept for one sampling run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

Value = TypeVar("Value")


class RunCache:
    """A dict that computes what it lacks. Made at the start of a sampling run and dropped at its end.

    Keys name everything that the value depends on: site, payload, device and dtype. Devices of one run may call from
    several threads; as their keys differ, a plain dict is enough.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]


class NoCache:
    """Computes every time: for training, where weights change between calls."""

    @staticmethod
    def get(key: Hashable, compute: Callable[[], Value]) -> Value:
        return compute()
