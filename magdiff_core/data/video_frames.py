"""Frames of video files by PyAV, which ComfyUI brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class BadVideo(ValueError):
    """A file that cannot be used; the text says why."""


@contextmanager
def _opened(path: Path):
    """The container and its first video stream; whatever FFmpeg says about a damaged file becomes BadVideo."""
    import av

    try:
        # titles in any other encoding than UTF-8 must not make a video unreadable
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadVideo(f"{path.name} holds no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _pixels(frame) -> Tensor:
    """`[H, W, 3]` uint8, upright: telephones write how they were held into the file instead of turning the pictures."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    return pixels.rot90(round(getattr(frame, "rotation", 0) / 90) % 4).contiguous()


def _count_and_rate(path: Path) -> tuple[int, float]:
    """Number of frames, as far as the file tells without decoding, and frames a second."""
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or 0)
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not count or not rate:
        raise BadVideo(f"{path.name} has {count} frames at {rate:g} a second")
    return count, rate


def _decoded(path: Path, wanted: range) -> Iterator[Tensor]:
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number >= wanted.stop:
                return
            if number in wanted:
                yield _pixels(frame)


def read_frames(path: Path, frames: int, frame_rate: float, start: float) -> tuple[Tensor, float]:
    """`frames` pictures `[F, H, W, 3]` uint8 at about `frame_rate` a second, and the time of the first in seconds.

    `start`: 0 = from the first frame, 1 = as late as possible. A video too short for `frame_rate` gives closer frames.
    Raises BadVideo when it has fewer than `frames`, or cannot be read.
    """
    count, rate = _count_and_rate(path)
    step = max(1, round(rate / frame_rate))
    if frames > 1:
        step = min(step, (count - 1) // (frames - 1))
    if step < 1 or count < frames:
        raise BadVideo(f"{path.name} has {count} frames, a clip needs {frames}")
    span = (frames - 1) * step + 1
    first = min(int(start * (count - span + 1)), count - span)
    pictures = list(_decoded(path, range(first, first + span, step)))
    if len(pictures) < frames:
        raise BadVideo(f"{path.name} ends early: it says {count} frames, {len(pictures)} of the {frames} for a clip could be read")
    if len({picture.shape for picture in pictures}) > 1:
        raise BadVideo(f"{path.name} changes its size in the middle")
    return torch.stack(pictures), first / rate


def read_frame_at(path: Path, seconds: float) -> Tensor:
    """The picture `[H, W, 3]` uint8 that is shown at that time. Raises BadVideo when there is none."""
    number = round(seconds * _count_and_rate(path)[1])
    for picture in _decoded(path, range(number, number + 1)):
        return picture
    raise BadVideo(f"{path.name} shows nothing at {seconds:.2f} s")


def read_picture(path: Path) -> Tensor:
    """A picture file as `[H, W, 3]` uint8. Raises BadVideo when it cannot be read."""
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return torch.from_numpy(numpy.array(ImageOps.exif_transpose(picture).convert("RGB")))
    except (OSError, ValueError) as error:
        raise BadVideo(f"{path.name} cannot be read: {error}") from error
