"""Training state on disk: written whole or not at all, and resumed to the very same state."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

DISK_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk becomes: torch and safetensors have errors of their own for it."""


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Whatever a full or refusing disk raises inside of the context becomes OSError naming file and free space."""
    try:
        yield
    except DISK_ERRORS as error:
        kept = "the one from before is still there" if path.exists() else "nothing was written"
        free = shutil.disk_usage(path.parent).free / 1e9
        raise OSError(f"cannot write {path} ({error}): {kept}. {free:.1f} GB are free there: make room, then resume") from error


def write_atomically(path: str | os.PathLike, write) -> None:
    """Calls `write(temporary_path)`, then moves the result to `path` in one step.

    When `write` raises, or the process dies in it, an older file at `path` stays as it was. Raises OSError naming file and
    free space when the disk is full or refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors_named(path):
            write(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_remains(path: Path) -> None:
    """Deletes what killed processes left of `write_atomically(path, ...)`: each may be as large as the file. Only for files that no
    other process writes now."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        remains.unlink(missing_ok=True)


def save_state(path: str | os.PathLike, state: dict) -> None:
    """Writes a dictionary of tensors, numbers, strings and nested containers of them."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: str | os.PathLike) -> dict:
    """Reads what `save_state` wrote, on the CPU, without running any code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


class MovingAverage:
    """Exponential moving average of named parameters, `[name] -> tensor`.

    The decay starts low, `(1 + n) / (10 + n)` after n updates, so that the random start is forgotten soon.
    """

    def __init__(self, parameters: dict[str, torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names = list(self.values)
        torch._foreach_lerp_([self.values[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
