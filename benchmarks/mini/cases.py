"""The held-out tasks of the benchmark, with everything that is known about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magdiff_core.data import procedural
from magdiff_core.metrics.subject import Template
from magdiff_core.train.batches import widened, with_looks

OTHERS = 7
"""Subjects that the given one must be told from."""
RIM = 2
"""Pixels by which the mask of a subject that is replaced is widened: what is kept must not show its antialiased edge."""
LOOKS = 32
"""Subjects that are drawn for each replacement, so that one of them differs from the old one and from the background."""


@dataclass(frozen=True)
class Replacement:
    """The other direction of an edit: the source's background and motion stay, the prompt names another subject.

    `target [F, 64, 64, 3]` in 0..1 shows such a clip, `target_mask [F, 64, 64]` its subject; what the prompt does not say (second
    colour, phase of the texture) is the target's own. `colour` is the subject's first one, which the prompt names.
    `edit_mask [F, 64, 64]`, 1 = the old subject with its rim.
    """

    prompt: str
    colour: int
    background_colour: int
    pattern: int
    target: Tensor
    target_mask: Tensor
    edit_mask: Tensor

    @property
    def subject(self) -> Template:
        return Template(self.target[0], self.target_mask[0])

    @property
    def kept(self) -> Tensor:
        """`[F, 64, 64]`, 1 where the background is given and the new subject does not come by."""
        return (1 - self.edit_mask) * (self.target_mask == 0)


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
    source_pattern: int
    source: Tensor
    source_mask: Tensor
    target: Tensor
    target_mask: Tensor
    edit_prompt: str
    edit_motion: int
    edit_target: Tensor
    others: list[Template]
    replacement: Replacement

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


def _other_looks(source: procedural.ClipSpec, generator: torch.Generator) -> procedural.ClipSpec:
    """The same clips with subjects of another shape and colour, both colours other than the background's."""
    count = len(source)
    drawn = procedural.sample(LOOKS * count, generator, "test")
    grouped = {name: getattr(drawn, name).unflatten(0, (count, LOOKS)) for name in ("shape", "colour", "second_colour")}
    ground = source.background_colour[:, None]
    fits = (grouped["shape"] != source.shape[:, None]) & (grouped["colour"] != source.colour[:, None])
    fits &= (grouped["colour"] != ground) & (grouped["second_colour"] != ground)
    chosen = drawn.select(torch.arange(count) * LOOKS + fits.float().argmax(1))
    return with_looks(source, chosen)


def _replacements(source: procedural.ClipSpec, source_mask: Tensor, generator: torch.Generator) -> list[Replacement]:
    new = _other_looks(source, generator)
    frames, mask = procedural.render(new)
    edit_mask = widened((source_mask > 0).float(), RIM)
    return [
        Replacement(text, int(new.colour[i]), int(new.background_colour[i]), int(new.pattern[i]), frames[i], mask[i], edit_mask[i])
        for i, text in enumerate(procedural.caption(new))
    ]


def make_cases(count: int, seed: int) -> list[Case]:
    """`count` tasks on (shape, colour) and (background colour, pattern) pairs that training never shows."""
    generator = torch.Generator().manual_seed(seed)
    source, target = procedural.cross_pairs(count, generator, "test")
    edit = target.replace(motion=source.motion)
    others = procedural.sample(OTHERS * count, generator, "test")
    source_frames, source_mask = procedural.render(source)
    target_frames, target_mask = procedural.render(target)
    edit_frames, _ = procedural.render(edit)
    other_frames, other_mask = procedural.render(others, 1)
    prompts, edit_prompts = procedural.caption(target), procedural.caption(edit)
    replacements = _replacements(source, source_mask, generator)
    return [
        Case(
            prompt=prompts[i],
            motion=int(target.motion[i]),
            background_colour=int(target.background_colour[i]),
            pattern=int(target.pattern[i]),
            source_background_colour=int(source.background_colour[i]),
            source_pattern=int(source.pattern[i]),
            source=source_frames[i],
            source_mask=source_mask[i],
            target=target_frames[i],
            target_mask=target_mask[i],
            edit_prompt=edit_prompts[i],
            edit_motion=int(edit.motion[i]),
            edit_target=edit_frames[i],
            others=[Template(other_frames[j, 0], other_mask[j, 0]) for j in range(i * OTHERS, (i + 1) * OTHERS)],
            replacement=replacements[i],
        )
        for i in range(count)
    ]
