"""Batches of encoded clips in an order that depends on the seed and the number of the batch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .adapter_cache import load

NO_PROMPT = 0.15
"""Share of the clips that train without their prompt (MagDiff, supplement B)."""
TIMESTEPS = 1000


@dataclass
class ClipBatch:
    """`latents`, `noise` `[B, F, C, h, w]` (latents not scaled), `timestep [B]`, `text [B, L, D]`, `subjects`: tensors of
    `Encoders.subject`, a row a clip."""

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    text: Tensor
    subjects: dict[str, Tensor]


class ClipBatches:
    """Draws `count` clips at a time from shuffled rounds through all files, and keeps the share of one of several processes."""

    def __init__(self, files: Sequence[Path], empty_text: Tensor, count: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        if count % processes:
            raise ValueError(f"{count} clips cannot be shared by {processes} processes: choose a batch that they divide")
        self.files = list(files)
        self.empty_text = empty_text
        self.count = count
        self.seed = seed
        self.mine = slice(rank * (count // processes), (rank + 1) * (count // processes))
        self.drawn = 0

    def next(self, generator: torch.Generator) -> ClipBatch:
        """The next batch; the generator gives noise, timesteps and which prompts are dropped, the same ones in every process."""
        numbers = [self._file_number(self.drawn + place) for place in range(self.count)]
        timestep = torch.randint(TIMESTEPS, (self.count,), generator=generator)
        keeps_prompt = torch.rand(self.count, generator=generator) >= NO_PROMPT
        clips = [load(self.files[number]) for number in numbers[self.mine]]
        noise = torch.randn(self.count, *clips[0]["latents"].shape, generator=generator)
        self.drawn += self.count
        text = [clip["text"] if keep else self.empty_text for clip, keep in zip(clips, keeps_prompt[self.mine])]
        subjects = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0] if name not in ("latents", "text")}
        latents = torch.stack([clip["latents"] for clip in clips])
        return ClipBatch(latents, noise[self.mine], timestep[self.mine], torch.stack(text), subjects)

    def _file_number(self, place: int) -> int:
        round_number, position = divmod(place, len(self.files))
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + round_number)
        return int(torch.randperm(len(self.files), generator=order)[position])
