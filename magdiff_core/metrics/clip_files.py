"""Clips, pictures, masks and prompts of a folder, matched by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower()) if part]


def find_clips(folder: Path) -> dict[str, Path]:
    """Clips of a folder by name, in natural order: video files, picture files, and folders of pictures.

    Raises:
        ValueError: no such folder, nothing in it, or two clips of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        is_clip = any(pictures_of(path)) if path.is_dir() else path.suffix.lower() in (*VIDEOS, *PICTURES)
        if not is_clip or path.name.startswith("."):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise ValueError(f"{folder} holds two clips named {name}: {found[name].name} and {path.name}")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no clip: video files ({', '.join(VIDEOS)}) or folders of pictures are wanted")
    return found


def pictures_of(folder: Path) -> list[Path]:
    """Picture files of a folder in natural order."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural(path.name))


def read_clip(path: Path, frames: int | None = None, stride: int = 1) -> Tensor:
    """A video file, a picture or a folder of pictures as `[F, H, W, 3]` in 0..1.

    Args:
        path: as `find_clips` gives it.
        frames: only the first so many.
        stride: only every so many-th.

    Raises:
        ValueError: the file cannot be read, has fewer frames than wanted, or pictures of several sizes.
        ImportError: a video, and PyAV is not installed.
    """
    try:
        arrays = _read_video(path, frames, stride) if path.suffix.lower() in VIDEOS else _read_pictures(path, frames, stride)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if frames is not None and len(arrays) < frames:
        every = f" with a stride of {stride}" if stride > 1 else ""
        raise ValueError(f"{path} has {len(arrays)} frames{every}, {frames} are wanted")
    if not arrays:
        raise ValueError(f"{path} has no frames")
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise ValueError(f"{path} has pictures of several sizes: {sorted(sizes)}")
    return torch.from_numpy(np.stack(arrays)).float() / 255


def _read_video(path: Path, frames: int | None, stride: int) -> list[np.ndarray]:
    try:
        import av
    except ImportError as error:
        raise ImportError("video files are read with PyAV, which ComfyUI brings: run `pip install av`") from error
    arrays = []
    with av.open(str(path), metadata_errors="replace") as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        for number, frame in enumerate(container.decode(video=0)):
            if number % stride:
                continue
            arrays.append(frame.to_ndarray(format="rgb24"))
            if len(arrays) == frames:
                break
    return arrays


def _read_pictures(path: Path, frames: int | None, stride: int) -> list[np.ndarray]:
    files = pictures_of(path)[::stride][:frames] if path.is_dir() else [path]
    arrays = []
    for file in files:
        with Image.open(file) as picture:
            arrays.append(np.asarray(picture.convert("RGB")))
    return arrays


def read_mask(path: Path, frames: int | None = None) -> Tensor:
    """A mask `[F or 1, H, W]` in 0..1 of the files that `read_clip` takes: white is 1. A single picture serves all frames."""
    single = path.is_file() and path.suffix.lower() in PICTURES
    return read_clip(path, None if single else frames).mean(-1)


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by clip name: of a CSV file with the columns clip and prompt, or of a folder of text files.

    Raises:
        ValueError: neither, other columns, or a clip twice.
    """
    if path.is_dir():
        return {file.stem: file.read_text("utf-8").strip() for file in sorted(path.glob("*.txt"))}
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"clip", "prompt"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}, clip and prompt are wanted")
        prompts: dict[str, str] = {}
        for row in rows:
            if row["clip"] in prompts:
                raise ValueError(f"{path} has the clip {row['clip']} twice")
            prompts[row["clip"]] = row["prompt"]
    return prompts


def check_names(clips: Mapping[str, object], others: Mapping[str, object], what: str) -> None:
    """Raises ValueError naming clips that `others` lacks."""
    missing = [name for name in clips if name not in others]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{what} has nothing for {', '.join(missing[:3])}{more}: entries are matched by the clip's name")
