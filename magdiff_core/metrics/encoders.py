"""What turns frames, prompts and clips into features: a network, how it wants its input, and the file it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import pictures
from .transformer import PictureTower, TextTower
from .weights_file import FileRecord

PICTURES_AT_ONCE = 16

Place = Callable[[nn.Module], torch.device]
"""Brings a module to where it computes, and says where."""
Step = Callable[[int], None]
"""Called with the number of frames that are done."""


def where_it_lies(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _in_parts(run: Callable[[Tensor], Tensor], frames: Tensor, step: Step) -> Tensor:
    parts = []
    for part in frames.split(PICTURES_AT_ONCE):
        with torch.inference_mode():
            parts.append(run(part).float().cpu())
        step(len(part))
    return torch.cat(parts)


@dataclass(frozen=True)
class ClipEncoder:
    """Both halves of a CLIP. `tokenize`: texts -> token ids `[n, length]` and which of them had to be cut short."""

    picture_tower: PictureTower
    text_tower: TextTower | None
    tokenize: Callable[[list[str], int], tuple[Tensor, list[bool]]]
    record: FileRecord
    place: Place = where_it_lies

    def pictures(self, frames: Tensor, step: Step = lambda count: None) -> Tensor:
        """`[F, H, W, 3]` in 0..1 -> `[F, D]`."""
        device = self.place(self.picture_tower)
        side = self.picture_tower.sizes.side
        return _in_parts(lambda part: self.picture_tower(pictures.for_clip(part.to(device), side)), frames, step)

    def text(self, prompt: str) -> tuple[Tensor, bool]:
        """Features `[1, D]` of a prompt, and whether it was cut short.

        Raises ValueError when the file has no text half."""
        if self.text_tower is None:
            raise ValueError(
                f"{self.record.name} holds only the picture half of a CLIP, so that no prompt can be compared with it: choose a "
                "whole CLIP file (model.safetensors of openai/clip-vit-large-patch14, say), or leave prompt empty"
            )
        device = self.place(self.text_tower)
        tokens, cut = self.tokenize([prompt], self.text_tower.sizes.positions)
        highest = int(tokens.max())
        if highest >= self.text_tower.sizes.vocabulary:
            raise ValueError(
                f"{self.record.name} knows {self.text_tower.sizes.vocabulary} tokens, CLIP's own vocabulary has {highest + 1}: "
                "its text half is no CLIP of OpenAI's or LAION's kind"
            )
        with torch.inference_mode():
            return self.text_tower(tokens.to(device)).float().cpu(), cut[0]


@dataclass(frozen=True)
class DinoEncoder:
    """DINO's ViT."""

    tower: PictureTower
    record: FileRecord
    place: Place = where_it_lies

    def pictures(self, frames: Tensor, step: Step = lambda count: None) -> Tensor:
        """`[F, H, W, 3]` in 0..1 -> `[F, D]`."""
        device = self.place(self.tower)
        return _in_parts(lambda part: self.tower(pictures.for_dino(part.to(device), self.tower.sizes.side)), frames, step)


@dataclass(frozen=True)
class VideoEncoder:
    """I3D or C3D: `prepare` makes `[3, F, h, w]` of a clip `[F, H, W, 3]`, `network` features or classes of a batch of those."""

    network: Callable[[Tensor], Tensor]
    module: nn.Module
    prepare: Callable[[Tensor], Tensor]
    record: FileRecord
    place: Place = where_it_lies

    def clips(self, prepared: Tensor) -> Tensor:
        """`[n, 3, F, h, w]` -> `[n, D]`."""
        device = self.place(self.module)
        with torch.inference_mode():
            outputs = self.network(prepared.to(device)).float().cpu()
        if outputs.ndim != 2 or len(outputs) != len(prepared):
            raise ValueError(
                f"{self.record.name} gave a tensor of shape {list(outputs.shape)} for {len(prepared)} clips, [{len(prepared)}, "
                "features] is wanted: it is another kind of model"
            )
        return outputs
