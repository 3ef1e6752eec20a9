"""Frames of whole videos one after the other, and mask videos with a frame for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..video_frames import PICTURES, BadVideo, read_picture

MASK_FILE = ".mask.mkv"


@dataclass(frozen=True)
class Facts:
    """Size as it is shown (upright), number of frames as the file tells it, and frames a second."""

    width: int
    height: int
    frames: int
    rate: Fraction

    @property
    def seconds(self) -> float:
        return float(self.frames / self.rate)


def probe(path: Path) -> tuple[Facts, Tensor]:
    """Facts about a video and its first frame `[H, W, 3]` uint8. Raises BadVideo when it cannot be read."""
    import av

    picture = next(stream_frames(path), None)
    if picture is None:
        raise BadVideo(f"{path.name} has no frame that can be read")
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    if not rate or not count:
        raise BadVideo(f"{path.name} has {count} frames at {float(rate or 0):g} a second")
    return Facts(picture.shape[1], picture.shape[0], count, Fraction(rate)), picture


def stream_frames(path: Path, longest_side: int = 0) -> Iterator[Tensor]:
    """All frames `[h, w, 3]` uint8, upright, made smaller to `longest_side` pixels (0 = as they are).

    Raises BadVideo when the file cannot be read or changes its size.
    """
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadVideo(f"{path.name} holds no pictures")
            shape = None
            for frame in container.decode(video=0):
                if shape not in (None, (frame.width, frame.height)):
                    raise BadVideo(f"{path.name} changes its size in the middle")
                shape = (frame.width, frame.height)
                width, height = smaller_size(*shape, longest_side)
                frame = frame.reformat(width, height, "rgb24", interpolation="AREA")
                pixels = torch.from_numpy(frame.to_ndarray())
                yield pixels.rot90(round(getattr(frame, "rotation", 0) / 90) % 4).contiguous()
    except (av.error.FFmpegError, OSError) as error:
        raise BadVideo(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def smaller_size(width: int, height: int, longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(width, height)) if longest_side else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def read_masks(path: Path, longest_side: int = 0) -> Iterator[Tensor]:
    """Frames of a given mask, a picture or a video, as bool `[h, w]`: white is the subject. Raises BadVideo as above."""
    pictures = [read_picture(path)] if path.suffix.lower() in PICTURES else stream_frames(path, longest_side)
    for picture in pictures:
        yield picture.float().mean(-1) > 127.5


def write_masks(path: Path, masks: Iterable[Tensor], rate: Fraction) -> list[float]:
    """Writes masks bool `[h, w]` as a lossless grey video, and gives the share of the picture that each covers.

    Raises BadVideo when there is no mask.
    """
    import av

    shares = []
    # bitexact: without it Matroska writes a random number into each file
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = None
        for mask in masks:
            if stream is None:
                stream = container.add_stream("ffv1", rate=rate)
                stream.height, stream.width = mask.shape
                stream.pix_fmt = "gray"
            shares.append(float(mask.float().mean()))
            frame = av.VideoFrame.from_ndarray((mask.to(torch.uint8) * 255).numpy(), format="gray")
            container.mux(stream.encode(frame))
        if stream is None:
            raise BadVideo("no frame can be read, so there is nothing to mask")
        container.mux(stream.encode())
    return shares
