"""A subject's masks through a whole clip: what they start from, and this pack's own tracker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from ...segment.grabcut import segment_grabcut
from ...segment.prompts import Box, Prompt
from ...segment.track import follow


@dataclass(frozen=True)
class Start:
    """Where the subject is in the first frame: a mask bool `[h, w]`, or boxes (x0, y0, x1, y1) in pixels."""

    subject_mask: Tensor | None = None
    boxes: tuple[Box, ...] = ()


class Follower(Protocol):
    def masks(self, frames: Iterable[Tensor], start: Start) -> Iterator[Tensor]:
        """A mask bool `[h, w]` for each frame `[h, w, 3]` uint8."""


class Tracker:
    """GrabCut inside the boxes, then optical flow. Takes `chunk` frames at a time into memory; each goes on from the last mask."""

    def __init__(self, chunk: int = 240) -> None:
        self.chunk = chunk

    def masks(self, frames: Iterable[Tensor], start: Start) -> Iterator[Tensor]:
        stream = iter(frames)
        first = next(stream, None)
        if first is None:
            return
        mask = start.subject_mask
        if mask is None:
            mask = torch.from_numpy(segment_grabcut(first.numpy(), Prompt(boxes=start.boxes)))
        yield mask
        last = first
        while rest := list(islice(stream, self.chunk)):
            if not mask.any():
                yield from (torch.zeros_like(mask) for _ in rest)
                continue
            images = torch.stack([last, *rest]).float() / 255
            followed = follow(images, {0: mask.float()}).subject_mask[1:] > 0.5
            yield from followed
            last, mask = rest[-1], followed[-1]
