"""Raw videos with what is known of them: a caption, a mask, or neither."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..video_clips import MASK_SUFFIX
from ..video_frames import PICTURES, VIDEOS


@dataclass(frozen=True)
class Source:
    """A video, its own caption ("" = none) and its own mask, a picture of the first frame or a video."""

    name: str
    video: Path
    caption: str = ""
    subject_mask: Path | None = None


def list_sources(place: Path) -> tuple[list[Source], list[str]]:
    """Videos, and for each entry that names a missing file a line that says so.

    Of a folder: `dog.mp4`, and `dog.txt`, `dog.mask.png` or `dog.mask.mp4` where they exist. Of a CSV: column `video`, and
    `caption` and `mask` where they exist; paths are relative to it.

    Raises FileNotFoundError when `place` does not exist and ValueError when it holds no video.
    """
    if not place.exists():
        raise FileNotFoundError(f"there is no folder or table {place}: give a folder of videos or a CSV with their paths")
    entries = list(_of_table(place) if place.is_file() else _of_folder(place))
    sources, problems = [], []
    for source in entries:
        missing = [file for file in (source.video, source.subject_mask) if file is not None and not file.is_file()]
        if missing:
            problems.append(f"{source.name}: there is no file {missing[0]}")
        else:
            sources.append(source)
    if not sources:
        what = "; ".join(problems[:3]) or f"no file ends in {', '.join(sorted(VIDEOS))}"
        raise ValueError(f"{place} holds no video that can be used: {what}")
    return sources, problems


def _of_folder(folder: Path) -> Iterator[Source]:
    files = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    is_mask = {file: file.stem.endswith(MASK_SUFFIX) for file in files}
    masks = {
        file.parent / file.stem.removesuffix(MASK_SUFFIX): file
        for file in files
        if is_mask[file] and file.suffix.lower() in VIDEOS | PICTURES
    }
    for file in files:
        if file.suffix.lower() in VIDEOS and not is_mask[file]:
            text = file.with_suffix(".txt")
            caption = _line(text.read_text("utf-8", errors="replace")) if text.is_file() else ""
            yield Source(file.relative_to(folder).as_posix(), file, caption, masks.get(file.with_suffix("")))


def _of_table(table: Path) -> Iterator[Source]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if "video" not in (reader.fieldnames or ()):
            raise ValueError(f"{table} has no column video; found are {', '.join(reader.fieldnames or ['none'])}")
        for row in reader:
            name, mask = _line(row["video"]), _line(row.get("mask"))
            yield Source(name, table.parent / name, _line(row.get("caption")), table.parent / mask if mask else None)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())
