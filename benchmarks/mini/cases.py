"""The held-out tasks of the benchmark, with everything that is known about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magdiff_core.data import procedural
from magdiff_core.metrics.subject import Template

OTHERS = 7
"""Subjects that the given one must be told from."""


@dataclass(frozen=True)
class Case:
    """One clip to make.

    The reference picture shows the subject on its own ground; prompt and true clip have another background and another
    motion. The edit keeps the source clip's subject and motion and takes the prompt's background. Frames are
    `[F, 64, 64, 3]` in 0..1, masks `[F, 64, 64]`; templates and `other_*` are subjects of other clips.
    """

    prompt: str
    motion: int
    background_colour: int
    pattern: int
    source_background_colour: int
    source: Tensor
    source_mask: Tensor
    target: Tensor
    target_mask: Tensor
    edit_prompt: str
    edit_motion: int
    edit_target: Tensor
    others: list[Template]

    @property
    def subject(self) -> Template:
        return Template(self.source[0], self.source_mask[0])

    @property
    def candidates(self) -> list[Template]:
        """The given subject and, after it, the others. The first other is the one that the shuffled row gets."""
        return [self.subject, *self.others]

    @property
    def kept(self) -> Tensor:
        """`[F, 64, 64]`, 1 well inside the source's subject; its antialiased edge holds some of the old background."""
        return (self.source_mask >= 1).float()


def make_cases(count: int, seed: int) -> list[Case]:
    """`count` tasks on (shape, colour) and (background colour, pattern) pairs that training never shows."""
    generator = torch.Generator().manual_seed(seed)
    source, target = procedural.cross_pairs(count, generator, "test")
    edit = target.replace(motion=source.motion, speed=source.speed, growth=source.growth)
    others = procedural.sample(OTHERS * count, generator, "test")
    source_frames, source_mask = procedural.render(source)
    target_frames, target_mask = procedural.render(target)
    edit_frames, _ = procedural.render(edit)
    other_frames, other_mask = procedural.render(others, 1)
    prompts, edit_prompts = procedural.caption(target), procedural.caption(edit)
    return [
        Case(
            prompt=prompts[i],
            motion=int(target.motion[i]),
            background_colour=int(target.background_colour[i]),
            pattern=int(target.pattern[i]),
            source_background_colour=int(source.background_colour[i]),
            source=source_frames[i],
            source_mask=source_mask[i],
            target=target_frames[i],
            target_mask=target_mask[i],
            edit_prompt=edit_prompts[i],
            edit_motion=int(edit.motion[i]),
            edit_target=edit_frames[i],
            others=[
                Template(other_frames[j, 0], other_mask[j, 0]) for j in range(i * OTHERS, (i + 1) * OTHERS)
            ],
        )
        for i in range(count)
    ]
