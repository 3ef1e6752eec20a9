"""What a stage found out about each clip: a JSON file, written whole or not at all, so that any stage goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

from ...train.checkpoint import write_atomically

STAGES = ("describe", "label", "masks")
"""In their order; a clip's record holds all that the stages before it wrote."""


class Records:
    """The records of one stage, a folder for each shard."""

    def __init__(self, work: Path, stage: str) -> None:
        self.stage = stage
        self.folder = work / stage
        self.work = work

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    def start(self, settings: dict) -> None:
        """Begins or goes on with these settings, and those of the stages before.

        Raises ValueError when the records that exist were made with others, FileNotFoundError when a stage before did not run.
        """
        place = STAGES.index(self.stage)
        if place:
            earlier = Records(self.work, STAGES[place - 1])
            settings = settings | {STAGES[place - 1]: earlier.settings()}
        # as JSON gives them back: tuples become lists
        settings = json.loads(json.dumps(settings))
        if self._settings_file.is_file():
            found = json.loads(self._settings_file.read_text("utf-8"))
            if found == settings:
                return
            raise ValueError(
                f"{self.folder} was made with other settings ({_difference(found, settings)}): use those, name another --work, "
                "or delete that folder to do the stage anew"
            )
        self._write(self._settings_file, settings)

    def settings(self) -> dict:
        """Raises FileNotFoundError when the stage did not run."""
        if not self._settings_file.is_file():
            raise FileNotFoundError(f"there is no {self._settings_file}: run the command `{self.stage}` first")
        return json.loads(self._settings_file.read_text("utf-8"))

    def clips(self, shard: str) -> list[str]:
        """Clips of a shard that have a record, in order."""
        return sorted(file.stem for file in (self.folder / shard).glob("*.json") if not file.name.startswith("."))

    def has(self, shard: str, clip: str) -> bool:
        return self.file(shard, clip).is_file()

    def read(self, shard: str, clip: str) -> dict:
        return json.loads(self.file(shard, clip).read_text("utf-8"))

    def write(self, shard: str, clip: str, record: dict) -> None:
        """Raises OSError when the disk is full."""
        self._write(self.file(shard, clip), record)

    def file(self, shard: str, clip: str, suffix: str = ".json") -> Path:
        return self.folder / shard / f"{clip}{suffix}"

    def _write(self, file: Path, content: dict) -> None:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        write_atomically(file, lambda path: path.write_text(text, "utf-8"))


def earlier_stage(stage: str) -> str:
    return STAGES[STAGES.index(stage) - 1]


def identity(folder: Path) -> str:
    """Name and size of a model's folder or file, the same on every machine. Raises FileNotFoundError when there is none."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no {folder}: name the folder that the model was downloaded into")
    files = [folder] if folder.is_file() else [file for file in folder.rglob("*") if file.is_file()]
    return f"{folder.resolve().name}, {sum(file.stat().st_size for file in files)} bytes"


def _difference(found: dict, wanted: dict, prefix: str = "") -> str:
    words = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            words.append(_difference(one, other, f"{prefix}{name}."))
        elif one != other:
            words.append(f"{prefix}{name} {one!r}, now {other!r}")
    return "; ".join(filter(None, words))
