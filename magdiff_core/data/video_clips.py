"""Real clips for the trainer: videos with captions and masks, from a folder or a CSV table.

Folder: every video in it or below it, with its caption in a text file of the same name (`dog.mp4`, `dog.txt`) and, where there is
one, the mask of its subject as a picture of the video's first frame or as a video (`dog.mask.png`, `dog.mask.mp4`). CSV: columns
`video` and `caption`, and `mask` where there are masks; paths are relative to the table. White is the subject.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..alignment.hfa import fit
from .video_frames import PICTURES, VIDEOS, BadVideo, read_frame_at, read_frames, read_picture

MASK_SUFFIX = ".mask"


@dataclass(frozen=True)
class VideoClip:
    """A video, what it shows in words, and the mask of its subject (a picture of frame 0, or a video) where there is one."""

    video: Path
    caption: str
    subject_mask: Path | None = None
    window: int = 0

    @property
    def name(self) -> str:
        return self.video.name if self.window == 0 else f"{self.video.name} (part {self.window + 1})"


@dataclass(frozen=True)
class Sampling:
    """How frames are taken: `frames` of them, `size` pixels square, `frame_rate` a second, from `windows` places of each video."""

    frames: int = 8
    size: int = 256
    frame_rate: float = 8.0
    windows: int = 1
    seed: int = 0


def list_clips(place: Path, windows: int = 1) -> tuple[list[VideoClip], list[str]]:
    """Clips of a folder or a CSV in a fixed order, and for each entry that cannot be used a line that says why.

    A clip whose mask is a picture of frame 0 is used from its start only. Raises FileNotFoundError when `place` does not exist and
    ValueError when it holds no clip at all.
    """
    if not place.exists():
        raise FileNotFoundError(f"there is no folder or table {place}: give a folder of videos or a CSV with their paths")
    entries = _entries_of_table(place) if place.is_file() else _entries_of_folder(place)
    clips, problems = [], []
    for entry in entries:
        if isinstance(entry, str):
            problems.append(entry)
            continue
        still = entry.subject_mask is not None and entry.subject_mask.suffix.lower() in PICTURES
        count = 1 if still else windows
        clips += [VideoClip(entry.video, entry.caption, entry.subject_mask, window) for window in range(count)]
    if not clips:
        what = "; ".join(problems[:3]) or f"no file ends in {', '.join(sorted(VIDEOS))}"
        raise ValueError(f"{place} holds no clip that can be used: {what}")
    return clips, problems


def _entries_of_folder(folder: Path) -> Iterator[VideoClip | str]:
    masks = {}
    videos = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in VIDEOS | PICTURES and file.stem.endswith(MASK_SUFFIX):
            masks[file.parent / file.stem.removesuffix(MASK_SUFFIX)] = file
        elif file.suffix.lower() in VIDEOS:
            videos.append(file)
    for video in videos:
        text = video.with_suffix(".txt")
        if not text.is_file():
            yield f"{video.name}: no caption, write one into {text.name}"
            continue
        yield _entry(video, text.read_text("utf-8", errors="replace"), masks.get(video.with_suffix("")))


def _entries_of_table(table: Path) -> Iterator[VideoClip | str]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"video", "caption"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{table} has no column {' and no column '.join(sorted(missing))}: it needs video, caption and, "
                             f"where there are masks, mask; found are {', '.join(reader.fieldnames or ['none'])}")  # fmt: skip
        for row in reader:
            mask = (row.get("mask") or "").strip()
            video = table.parent / (row["video"] or "").strip()
            yield _entry(video, row["caption"] or "", table.parent / mask if mask else None)


def _entry(video: Path, caption: str, subject_mask: Path | None) -> VideoClip | str:
    for what, file in (("video", video), ("mask", subject_mask)):
        if file is not None and not file.is_file():
            return f"{video.name}: there is no {what} {file}"
    caption = " ".join(caption.split())
    if not caption:
        return f"{video.name}: its caption is empty"
    return VideoClip(video, caption, subject_mask)


def clips_state(place: Path) -> str:
    """Changes when a file of a folder, or a table, does; empty where there is nothing."""
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    status = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return str(zlib.crc32(repr(status).encode())) if status else ""


def start_of(clip: VideoClip, sampling: Sampling) -> float:
    """Where in its video the clip begins, 0 = at the first frame, 1 = as late as possible; depends on name and seed alone."""
    if clip.subject_mask is not None and clip.subject_mask.suffix.lower() in PICTURES:
        return 0.0
    generator = torch.Generator().manual_seed(zlib.crc32(clip.video.name.encode()) ^ sampling.seed)
    draws = torch.rand(clip.window + 1, generator=generator)
    return (clip.window + float(draws[-1])) / sampling.windows


def read_clip(clip: VideoClip, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Frames `[F, size, size, 3]` in 0..1, cut from the centre, and the subject of the first of them on black `[1, size, size, 3]`.

    A clip without a mask gives its whole first frame as the subject (MagDiff, supplement D). Raises BadVideo when a file
    cannot be read, is too short, or when the mask is empty inside the square.
    """
    pixels, seconds = read_frames(clip.video, sampling.frames, sampling.frame_rate, start_of(clip, sampling))
    size = sampling.size
    frames = fit(pixels.float() / 255, size, size, "crop")
    if clip.subject_mask is None:
        return frames, frames[:1]
    if clip.subject_mask.suffix.lower() in PICTURES:
        mask = read_picture(clip.subject_mask)
    else:
        mask = read_frame_at(clip.subject_mask, seconds)
    if _ratio_differs(mask, pixels):
        raise BadVideo(
            f"its mask is {mask.shape[1]} x {mask.shape[0]}, the video {pixels.shape[2]} x {pixels.shape[1]}: "
            "the sides need the same ratio"
        )
    subject_mask = fit(mask[None].float() / 255, size, size, "crop").mean(-1, keepdim=True)
    if not (subject_mask > 0.5).any():
        raise BadVideo("its mask is empty inside the square that is cut from the centre")
    return frames, frames[:1] * subject_mask


def _ratio_differs(mask: Tensor, pixels: Tensor) -> bool:
    height, width = pixels.shape[1:3]
    return abs(mask.shape[1] * height - mask.shape[0] * width) > 2 * max(height, width)
