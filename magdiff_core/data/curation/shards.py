"""Tar files of clips in webdataset's layout: members with one name before the first dot belong together.

`00000012.mp4`, `00000012.txt` (caption), `00000012.mask.png` or `00000012.mask.mp4` (mask), `00000012.json` (facts).
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...train.checkpoint import write_atomically
from ..video_clips import MASK_SUFFIX
from ..video_frames import PICTURES, VIDEOS, BadVideo
from .sources import Source

logger = logging.getLogger("magdiff")


@dataclass(frozen=True)
class Part:
    """Shards `index`, `index + count`, `index + 2 count`, ... are this process's own."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Part:
        """From "2/8", counted from 0; from RANK and WORLD_SIZE, which `accelerate launch` and `torchrun` set, when None."""
        if text is None:
            text = f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
        words = text.split("/")
        if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
            raise ValueError(f"--shard {text}: it is i/n with i from 0 to n - 1, for example 0/8 to 7/8")
        return cls(int(words[0]), int(words[1]))

    def of(self, shards: Sequence) -> list:
        return list(shards[self.index :: self.count])


@dataclass(frozen=True)
class PackedClip:
    """A clip that was taken out of its shard, into a folder that is about to go."""

    video: Path
    caption: str
    subject_mask: Path | None
    source: str


def pack(sources: Sequence[Source], folder: Path, per_shard: int, part: Part) -> list[Path]:
    """Writes this part's shards `clips-000000.tar`, ... of `per_shard` clips each; those that exist stay as they are.

    Raises ValueError when the folder holds shards of other sources, OSError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"
    content = json.dumps({"per_shard": per_shard, "clips": [source.name for source in sources]}, indent=0)
    if not index.is_file():
        write_atomically(index, lambda path: path.write_text(content, "utf-8"))
    elif index.read_text("utf-8") != content:
        raise ValueError(f"{folder} holds shards of other videos, or of another number: name another --work, or delete that folder")
    numbers = part.of(range(-(-len(sources) // per_shard)))
    shards = [folder / f"clips-{number:06d}.tar" for number in numbers]
    for number, shard in zip(numbers, shards):
        if not shard.is_file():
            first = number * per_shard
            chosen = list(enumerate(sources))[first : first + per_shard]
            write_atomically(shard, lambda path, chosen=chosen: _write_shard(path, chosen))
    return shards


def _write_shard(path: Path, sources: list[tuple[int, Source]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, source in sources:
            key = f"{number:08d}"
            tar.add(source.video, f"{key}{source.video.suffix.lower()}", recursive=False)
            if source.subject_mask is not None:
                tar.add(source.subject_mask, f"{key}{MASK_SUFFIX}{source.subject_mask.suffix.lower()}", recursive=False)
            texts = {".json": json.dumps({"source": source.name})} | ({".txt": source.caption} if source.caption else {})
            for suffix, text in texts.items():
                member = tarfile.TarInfo(f"{key}{suffix}")
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))


def find_shards(folder: Path, part: Part) -> list[Path]:
    """This part's shards of a folder. Raises FileNotFoundError when there is none at all."""
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(f"there is no .tar file in {folder}: run the command `pack` first, or name --shards")
    return part.of(shards)


class DamagedShard(ValueError):
    """A shard that cannot be opened; the text says why."""


def open_shards(paths: Sequence[Path], damaged: list[str]) -> Iterator[Shard]:
    """Shards, each open until the next is asked for; for one that is damaged a line is logged and added to `damaged`."""
    for path in paths:
        try:
            opened = Shard(path)
        except DamagedShard as error:
            logger.error("%s", error)
            damaged.append(str(error))
            continue
        with opened:
            yield opened


class Shard:
    """An open shard. Raises DamagedShard on opening when the file cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115
            members = [member for member in self._tar.getmembers() if member.isfile()]
        except (tarfile.TarError, EOFError) as error:
            raise DamagedShard(f"{path.name} is damaged ({error}): make it again") from error
        self._clips: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in members:
            folder, _, name = member.name.rpartition("/")
            key, dot, suffix = name.partition(".")
            if key and dot:
                clip = f"{folder}/{key}".strip("./").replace("/", "__")
                self._clips.setdefault(clip, {})["." + suffix.lower()] = member

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.close()

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def clips(self) -> list[str]:
        """Names of its clips in order; what has no video is not one."""
        return sorted(clip for clip, members in self._clips.items() if VIDEOS & members.keys())

    def has_mask(self, clip: str) -> bool:
        return _mask_suffix(self._clips[clip]) is not None

    def take_out(self, clip: str, folder: Path) -> PackedClip:
        """Writes the clip's files into `folder`. Raises BadVideo when the shard ends before they do."""
        members = self._clips[clip]
        video = min(VIDEOS & members.keys())
        mask = _mask_suffix(members)
        files = {}
        for suffix in filter(None, (video, mask)):
            files[suffix] = folder / f"{clip}{suffix}"
            files[suffix].write_bytes(self._bytes(members[suffix]))
        caption = self._bytes(members[".txt"]).decode("utf-8", "replace") if ".txt" in members else ""
        return PackedClip(files[video], " ".join(caption.split()), files.get(mask), self._source(clip))

    def _source(self, clip: str) -> str:
        member = self._clips[clip].get(".json")
        try:
            facts = json.loads(self._bytes(member)) if member else None
        except ValueError:
            facts = None
        return str(facts["source"]) if isinstance(facts, dict) and "source" in facts else clip

    def _bytes(self, member: tarfile.TarInfo) -> bytes:
        try:
            data = self._tar.extractfile(member).read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadVideo(f"{member.name} cannot be read from {self.path.name}: {error}") from error
        if len(data) != member.size:
            raise BadVideo(f"{self.path.name} ends in the middle of {member.name}")
        return data


def _mask_suffix(members: dict[str, tarfile.TarInfo]) -> str | None:
    known = {MASK_SUFFIX + suffix for suffix in VIDEOS | PICTURES} & members.keys()
    return min(known, default=None)
