"""Finished windows of clips that are not complete yet, as files in ComfyUI's folder for temporary files.

ComfyUI empties that folder when it starts and when it ends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import folder_paths
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

log = logging.getLogger("magdiff")

FOLDER = "magdiff_long_video"
SUFFIX = ".safetensors"
OTHERS_BYTES = 4 * 1024**3
"""What the windows of other unfinished clips may take before the oldest are removed."""


class WindowStore:
    """Frames of windows by a digest of all that they depend on."""

    def __init__(self) -> None:
        self.folder = Path(folder_paths.get_temp_directory(), FOLDER)

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}{SUFFIX}"

    def load(self, digest: str) -> Tensor | None:
        """The frames kept under `digest`, or None. A file that cannot be read is logged, removed, and counts as none."""
        file = self._file(digest)
        if not file.is_file():
            return None
        try:
            # Not mapped into memory: on Windows a mapped file cannot be removed.
            return load(file.read_bytes())["frames"]
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("the kept window %s cannot be read (%s): it is computed again", file, error)
            self.remove([digest])
            return None

    def save(self, digest: str, frames: Tensor) -> None:
        """Keep frames; the file appears whole or not at all. When the disk refuses, that is logged and the run goes on."""
        part = self.folder / f"{digest}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"frames": frames.contiguous()}, part)
            os.replace(part, self._file(digest))
        except (OSError, SafetensorError) as error:
            log.warning("a finished window cannot be kept in %s (%s): after an interrupt it would be lost", self.folder, error)
            part.unlink(missing_ok=True)

    def remove(self, digests: Collection[str]) -> None:
        """Forget windows, present or not."""
        for digest in digests:
            try:
                self._file(digest).unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove %s: %s", self._file(digest), error)

    def make_room(self, digests: Collection[str]) -> None:
        """Remove the oldest windows of other clips than that of `digests` until they take no more than OTHERS_BYTES."""
        if not self.folder.is_dir():
            return
        others = [file for file in self.folder.glob(f"*{SUFFIX}") if file.stem not in digests]
        states = sorted(((file.stat(), file) for file in others), key=lambda pair: pair[0].st_mtime, reverse=True)
        total = 0
        for state, file in states:
            total += state.st_size
            if total > OTHERS_BYTES:
                self.remove([file.stem])
