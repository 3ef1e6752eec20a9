"""Training batches of the last stage: clips as latents, prompts, and what the model is told about the subject."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, autocast

from ..alignment.hfa import pyramid_sizes, resize
from ..data import procedural
from .alignments import ALL, Alignments

PROMPTS = "prompts"
"""How training begins: no subject, and of each clip only its ends, so that nothing but the prompt tells what to paint."""
PLAIN = "plain"
"""No subject at all: text-to-video."""
TOKENS = "tokens"
"""Image tokens without subject latents, so that the tokens have to carry the subject. In groups of clips (`GROUP`) with one
scene, pose, motion and noise, but subjects of other looks, and prompts that name only their shape. They begin in the middle:
where there is only noise to see, a look is worth nothing to a model that does not know where to paint it."""
LATENTS = "latents"
"""Subject latents without image tokens."""
EDIT = "edit"
"""Tokens and latents of every frame. The paper trains without such batches; they help a network this small."""
GENERATE = "generate"
MOTION = "motion"
"""As GENERATE, in groups of clips (`GROUP`) that differ in the motion alone, noise included, so that only the motion's word
can tell them apart. Measured: after 3200 steps without them the word had no effect at all; with them it has one within 125."""
PATTERN = "pattern"
"""As PLAIN, in groups of clips (`GROUP`) that differ in the background's pattern alone, noise included. Measured: without
them the noise decided, 47 % right after 20000 steps; with them, at timesteps from 960 on, 94 % after 400 more."""
REPLACE = "replace"
"""As EDIT where the background is kept, in groups of clips (`GROUP`) with one hole, motion and noise, but subjects of other looks,
which the prompts name: only a word can tell what comes into the hole. Measured: after 2900 steps with them a new subject has the
prompt's colour in 52 % of 40 clips (standard error 8), as before them (53 % of 32), so the rest of the way is still to be found."""

KINDS = (
    (PLAIN, 0.03), (PATTERN, 0.05), (TOKENS, 0.02), (LATENTS, 0.02), (EDIT, 0.36), (REPLACE, 0.06), (MOTION, 0.04),
    (GENERATE, 0.42),
)  # fmt: skip
GROUP = 4
GROUPED = (MOTION, PATTERN, REPLACE, TOKENS)
DIRECTIONS = 4
"""The first of `procedural.MOTIONS`."""
DIRECTIONS_SHARE = 0.4
LOOK = ("shape", "blob", "colour", "second_colour", "texture", "texture_angle", "texture_cycles", "texture_phase", "spots")
"""Fields of a clip that its subject's look consists of, with two thirds of `colour_jitter`."""
SUBJECT_WEIGHT = 10.0
"""Added weight of the loss where the subject is: it covers a twelfth of the picture and carries identity and motion."""
RIM_WEIGHT = 5.0
"""The same for the latent pixels next to it: with no more than the background's weight the ground there came out mottled."""
SWEPT_WEIGHT = 20.0
"""The same for `MOTION` and `TOKENS`, wherever the subject comes by in any frame: painting it at a wrong place costs too."""
NO_TEXT = 0.15
UNKNOWN_WORD = 0.01
UNKNOWN_WORD_TEXT = "something"
"""Not in the vocabulary, so it becomes the unknown word."""
OTHER_POSE = 0.5
"""Share of the references that show the subject in another pose than the clip does, so that image tokens matter: such a clip has
no subject latents, which say where the subject is. (Measured while it had them: half of the time they were in the wrong place,
and a subject in motion came out as a blot.)"""
TOKENS_RADIUS = 16.0
INVERSE_EDIT = 0.3
"""Share of `EDIT` batches' clips that keep the background and paint the subject that the prompt names into a hole."""
HOLE_MARGINS = (0, 2, 4, 8)
"""Pixels that the hole is wider than the subject that comes into it and the one that was there: it must not tell a shape."""


@dataclass
class Batch:
    """`latents [B, F, C, h, w]`, a prompt a clip, the loss's `weight [B, F, 1, h, w]` (1 outside of the subject),
    `pictures [B, n, H, W, 3]` of the subject (n is 1 or F, and last a black
    one) or None, and the pyramid levels `[B, n, C, h_l, w_l]` of the same pictures (without the black one) or None.
    Each `group` neighbours in B share noise and timestep. Levels of zeros: that clip is to do without subject latents."""

    kind: str
    latents: Tensor
    prompts: list[str]
    weight: Tensor
    pictures: Tensor | None
    pyramid: tuple[Tensor, ...] | None
    group: int = 1


def kinds_with(alignments: Alignments) -> tuple[tuple[str, float], ...]:
    """Those of `KINDS` that make sense with these alignments, with their shares of all batches (which sum to 1).

    Without image tokens the clips of a `TOKENS` batch cannot be told apart; without subject latents `LATENTS` is `PLAIN`.
    """
    kinds = [(kind, share) for kind, share in KINDS if (alignments.apa or kind != TOKENS) and (alignments.hfa or kind != LATENTS)]
    total = math.fsum(share for _, share in kinds)
    return tuple((kind, share / total) for kind, share in kinds)


def draw_kind(generator: torch.Generator, alignments: Alignments = ALL) -> str:
    draw = float(torch.rand(1, generator=generator))
    for kind, share in kinds_with(alignments):
        draw -= share
        if draw < 0:
            return kind
    return GENERATE


def draw_prompts(spec: procedural.ClipSpec, generator: torch.Generator, shape_only: bool = False) -> list[str]:
    """Captions in random templates, or in the one that names only the shape; some empty (for guidance), some words unknown."""
    prompts = []
    captions = procedural.caption(spec, template=-1) if shape_only else procedural.caption(spec, generator)
    for text in captions:
        if float(torch.rand(1, generator=generator)) < NO_TEXT:
            prompts.append("")
            continue
        words = text.split()
        keep = torch.rand(len(words), generator=generator) >= UNKNOWN_WORD
        prompts.append(" ".join(word if kept else UNKNOWN_WORD_TEXT for word, kept in zip(words, keep)))
    return prompts


def cut_out(subject: Tensor, subject_mask: Tensor, behind: Tensor) -> Tensor:
    """Subject on black as a user's cut-out gives it: `behind` shows through where the mask is a fraction.

    `subject [B, F, h, w, 3]`, `subject_mask [B, F, h, w]`, `behind [B, h, w, 3]`. Training gives another clip's background
    here, so that the rim of the subject never tells the background that the prompt asks for.
    """
    return procedural.over(subject, subject_mask, behind) * subject_mask[..., None]


def reference_pictures(
    spec: procedural.ClipSpec,
    generator: torch.Generator,
    other_pose: float = OTHER_POSE,
    group: int = 1,
    alignments: Alignments = ALL,
) -> tuple[Tensor, Tensor]:
    """Subject on black `[B, 1, 64, 64, 3]`: frame 0 of the clip, or in `other_pose` of the cases the same subject elsewhere; and
    which ones those are, bool `[B]`.

    Each `group` neighbours, whose own pose is the same, share the other one too. Without SDA they stand on the clip's background.
    """
    first = spec.select(slice(None, None, group))
    moved = torch.rand(len(first), generator=generator) < other_pose
    other = procedural.other_pose(first, generator)
    shown = torch.where(moved, len(first), 0) + torch.arange(len(first))
    pose = {
        name: torch.cat([getattr(first, name), getattr(other, name)])[shown].repeat_interleave(group, 0)[: len(spec)]
        for name in ("centre", "radius", "rotation")
    }
    posed = spec.replace(**pose)
    moved = moved.repeat_interleave(group, 0)[: len(spec)]
    if not alignments.sda:
        return procedural.render(posed, frames=1)[0], moved
    return cut_out(*procedural.render_subject(posed, frames=1), procedural.background(spec).roll(group, 0)), moved


def draw_motions(generator: torch.Generator) -> Tensor:
    """`GROUP` different motions: in `DIRECTIONS_SHARE` of the cases the four directions, else any that include all others.

    Directions are the last thing that is learned: moving at all is told from growing long before left is told from up.
    """
    shuffled = torch.randperm(len(procedural.MOTIONS), generator=generator)
    direction = shuffled < DIRECTIONS
    if float(torch.rand(1, generator=generator)) < DIRECTIONS_SHARE:
        return shuffled[direction]
    return torch.cat([shuffled[~direction], shuffled[direction]])[:GROUP]


def with_looks(spec: procedural.ClipSpec, other: procedural.ClipSpec) -> procedural.ClipSpec:
    """The clips of `spec` with the looks of the subjects of `other`."""
    jitter = torch.cat([other.colour_jitter[:, :2], spec.colour_jitter[:, 2:]], 1)
    return spec.replace(**{name: getattr(other, name) for name in LOOK}, colour_jitter=jitter)


def other_looks(spec: procedural.ClipSpec, generator: torch.Generator) -> procedural.ClipSpec:
    """The same clips with subjects of other looks. One of the background's colour would not be seen: such a clip keeps its own."""
    other = procedural.sample(len(spec), generator)
    unseen = (other.colour == spec.background_colour) | (other.second_colour == spec.background_colour)
    changed = with_looks(spec, other)
    looks = {name: getattr(changed, name) for name in (*LOOK, "colour_jitter")}
    return spec.replace(
        **{name: torch.where(unseen.view(-1, *[1] * (look.ndim - 1)), getattr(spec, name), look) for name, look in looks.items()}
    )


def draw_clips(count: int, generator: torch.Generator, kind: str) -> procedural.ClipSpec:
    """Training clips; those of a kind in `GROUPED` come in groups that differ in motion, pattern, or the subject's look."""
    if kind not in GROUPED:
        return procedural.sample(count, generator)
    clips = -(-count // GROUP)
    spec = procedural.sample(clips, generator).select(torch.arange(clips).repeat_interleave(GROUP)[:count])
    if kind == MOTION:
        return spec.replace(motion=torch.cat([draw_motions(generator) for _ in range(clips)])[:count])
    if kind == PATTERN:
        # all but the one that is kept for tests with this colour
        drawn = torch.arange(len(procedural.PATTERNS)).expand(count, -1)
        drawn = drawn[~procedural.held_out_background(spec.background_colour[:, None], drawn)].view(count, GROUP)
        return spec.replace(pattern=drawn[torch.arange(count), torch.arange(count) % GROUP])
    spec = other_looks(spec, generator)
    if kind == REPLACE:
        return spec
    middle, radius = torch.full_like(spec.centre, procedural.SIZE / 2), torch.full_like(spec.radius, TOKENS_RADIUS)
    return spec.replace(centre=middle, radius=radius)


def widened(subject_mask: Tensor, margin: int) -> Tensor:
    """`[B, F, H, W]` with `margin` more pixels on all sides."""
    return torch.nn.functional.max_pool2d(subject_mask, 2 * margin + 1, 1, margin)


def kept_around(
    spec: procedural.ClipSpec, subject_mask: Tensor, behind: Tensor, generator: torch.Generator, group: int = 1
) -> Tensor:
    """What a replacement keeps, `[B, F, H, W, 3]`: the same clips with other subjects, and a hole where those are and the new ones
    will be. Each `group` neighbours share subject and hole.

    `subject_mask [B, F, H, W]`, `behind [B, H, W, 3]`. Nothing of the new subject may show: where the hole's rim is a fraction,
    the clip with the other subject shines through, as it does when a user cuts it out.
    """
    place = torch.arange(len(spec)) // group
    others = other_looks(spec.select(slice(None, None, group)), generator).select(place)
    before, before_mask = procedural.render_subject(others)
    margin = HOLE_MARGINS[int(torch.randint(len(HOLE_MARGINS), (1,), generator=generator))]
    covered = torch.stack([members.amax(0) for members in torch.maximum(subject_mask, before_mask).split(group)])
    return procedural.over(before, before_mask, behind) * (1 - widened(covered, margin)[place][..., None])


def loss_weight(subject_share: Tensor, kind: str) -> Tensor:
    """Weight of each latent pixel `[B, F, 1, h, w]`; `subject_share` of the same shape: how much of it the subject covers, 0..1."""
    if kind == PATTERN:
        return torch.ones_like(subject_share)
    if kind in (MOTION, TOKENS):
        return 1 + SWEPT_WEIGHT * subject_share.amax(1, keepdim=True).expand_as(subject_share)
    beside = widened(subject_share[:, :, 0], 1)[:, :, None]
    return 1 + torch.maximum(SUBJECT_WEIGHT * subject_share, RIM_WEIGHT * beside)


@torch.no_grad()
def encode(autoencoder: torch.nn.Module, pictures: Tensor) -> Tensor:
    """Pictures `[B, n, H, W, 3]` in 0..1 -> latents `[B, n, C, h, w]` float32."""
    # contiguous, as in `autoencoder.pictures`; so is what the UNet gets
    channels_first = pictures.flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    with autocast("cpu", torch.bfloat16):
        latents = autoencoder.encode(channels_first * 2 - 1)
    return latents.float().unflatten(0, pictures.shape[:2])


def encode_pyramid(autoencoder: torch.nn.Module, pictures: Tensor, latent_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The three HFA levels of pictures `[B, n, H, W, 3]`, lowest first, as HFA Pyramid Encode makes them.

    The upper ones are already at the size of the lowest (the branch would do it with every call, in half precision).
    """
    factor = pictures.shape[2] // latent_size[0]
    flat = pictures.flatten(0, 1).movedim(-1, 1)
    levels = []
    for height, width in pyramid_sizes(*latent_size):
        pixels = resize(flat, height * factor, width * factor).clamp(0, 1).movedim(1, -1)
        level = encode(autoencoder, pixels.unflatten(0, pictures.shape[:2]))
        levels.append(resize(level.flatten(0, 1), *latent_size).unflatten(0, pictures.shape[:2]))
    return tuple(levels)


def draw_batch(
    autoencoder: torch.nn.Module,
    count: int,
    generator: torch.Generator,
    kind: str | None = None,
    alignments: Alignments = ALL,
) -> Batch:
    """A batch of one kind, a random one by default."""
    kind = kind or draw_kind(generator, alignments)
    spec = draw_clips(count, generator, kind)
    group = min(GROUP, count) if kind in GROUPED else 1
    subject, subject_mask = procedural.render_subject(spec)
    behind = procedural.background(spec)
    frames = procedural.over(subject, subject_mask, behind)
    if kind == PROMPTS:
        frames, subject_mask = frames[:, [0, -1]], subject_mask[:, [0, -1]]
    latents = encode(autoencoder, frames)
    share = torch.nn.functional.adaptive_avg_pool2d(subject_mask, tuple(latents.shape[-2:]))[:, :, None]
    weight = loss_weight(share, kind)
    prompts = draw_prompts(spec, generator, kind == TOKENS)
    if kind in (PROMPTS, PLAIN, PATTERN):
        return Batch(kind, latents, prompts, weight, None, None, group)
    with_tokens = kind != LATENTS and alignments.apa
    moved = torch.zeros(count, dtype=torch.bool)
    if kind in (EDIT, REPLACE):
        kept = kept_around(spec, subject_mask, behind, generator, group)
        inverse = torch.rand(count, 1, 1, 1, 1, generator=generator) < (1.0 if kind == REPLACE else INVERSE_EDIT)
        pictures = torch.where(inverse, kept, cut_out(subject, subject_mask, behind.roll(1, 0)))
        if not alignments.sda:
            pictures = frames
    else:
        pictures, moved = reference_pictures(spec, generator, OTHER_POSE if with_tokens else 0.0, group, alignments)
    pyramid = None
    if kind != TOKENS and alignments.hfa:
        levels = encode_pyramid(autoencoder, pictures, tuple(latents.shape[-2:]))
        pyramid = tuple(level.masked_fill(moved.view(-1, 1, 1, 1, 1), 0.0) for level in levels)
    pictures = torch.cat([pictures, torch.zeros_like(pictures[:, :1])], 1) if with_tokens else None
    return Batch(kind, latents, prompts, weight, pictures, pyramid, group)


class BatchSource:
    """Gives each batch `USES` times, with noise and timestep drawn anew by the caller: to draw and encode one costs
    a third of a step's work, of edits more than a step's.

    The state of a pending batch is the generator's state before it was drawn, so a resumed run draws the same one again.
    """

    USES = 4

    def __init__(self, draw: Callable[[torch.Generator, int], Batch]) -> None:
        """`draw`: makes batch number n (from 0) with the generator."""
        self.draw = draw
        self.number = -1
        self.batch: Batch | None = None
        self.drawn_at: Tensor | None = None
        self.left = 0

    def next(self, generator: torch.Generator) -> Batch:
        if self.left == 0:
            self.drawn_at = generator.get_state()
            self.number += 1
            self.batch = self.draw(generator, self.number)
            self.left = self.USES
        self.left -= 1
        return self.batch

    def state_dict(self) -> dict:
        return {"left": self.left, "drawn_at": self.drawn_at, "number": self.number}

    def load_state_dict(self, state: dict) -> None:
        self.left, self.drawn_at, self.number = state["left"], state["drawn_at"], state["number"]
        if self.left:
            generator = torch.Generator()
            generator.set_state(self.drawn_at)
            self.batch = self.draw(generator, self.number)
