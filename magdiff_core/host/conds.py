"""What rides on CONDITIONING: image tokens, sliders and subject latents, as constant conds that core passes through whole.

Core would repeat tensors of a conditioning to the batch, cut them by context windows and copy them at every step. These
payloads are shared objects instead: positive and negative hold the same one, so core can still batch them, and the host
takes from them what the current window needs, once per sampling run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import comfy.conds
from torch import Tensor

from ..alignment.apa import AlphaSettings
from .names import COND_ALPHAS, COND_LATENTS, COND_TOKENS

GENERATE = "generate"
EDIT = "edit"


@dataclass(frozen=True, eq=False)
class SubjectTokens:
    """Hidden states of the image encoder, by layer ("last", "penultimate"): the adapter says which one it was trained on.

    Each is `[rows, entries, L, width]`; rows is 1, or the number of clips in a training batch. The entries are the subject
    frames (1, or one a frame of the clip), when `negative_entry` the picture that the negative reads, and when `black_entry`, last,
    the black frame.
    """

    layers: Mapping[str, Tensor]
    black_entry: bool
    negative_entry: bool = False
    key: UUID = field(default_factory=uuid4)

    @property
    def subject_entries(self) -> int:
        return next(iter(self.layers.values())).shape[1] - int(self.black_entry) - int(self.negative_entry)

    @property
    def entries(self) -> int:
        """Number of all entries."""
        return next(iter(self.layers.values())).shape[1]

    def frame_entries(self, total_frames: int, window: Sequence[int]) -> list[int]:
        """Which entry each frame of `window` (frame numbers of the whole clip) takes.

        One subject entry stands at position 0 and the black one at all others (none where there is no black entry: the order
        of image tokens carries no meaning). Otherwise frame j takes entry j. Raises ValueError for any other count.
        """
        if self.subject_entries == total_frames:
            return list(window)
        if self.subject_entries == 1:
            return [0] + ([self.entries - 1] * (len(window) - 1) if self.black_entry else [])
        raise ValueError(
            f"clip_vision_output holds {self.subject_entries} subject frames, the clip has {total_frames} frames: "
            f"encode 1 picture (generation) or {total_frames} (editing)"
        )

    def picture_entries(self, total_frames: int, window: Sequence[int]) -> list[int]:
        """The entry whose picture each frame of `window` reads: a list of one where all frames read the same.

        One entry serves the whole clip; of two (first and last frame) the first does. Otherwise frame j takes entry j. Raises
        ValueError for any other count.
        """
        if self.subject_entries == total_frames and total_frames > 1:
            return list(window)
        if self.subject_entries in (1, 2):
            return [0]
        raise ValueError(
            f"clip_vision_output holds {self.subject_entries} subject frames, the clip has {total_frames} frames: "
            f"encode 1 picture, 2 (first and last frame) or {total_frames} (editing)"
        )


@dataclass(frozen=True)
class ClipTokens:
    """Subject tokens of a batch and, for each clip in it, whether it is a negative, which reads the negative's entry."""

    tokens: SubjectTokens
    negative: tuple[bool, ...]


class SubjectTokensCond(comfy.conds.CONDConstant):
    """Subject tokens whose negative reads another entry: positive and negative still run in one batch."""

    def can_concat(self, other) -> bool:
        return isinstance(other, SubjectTokensCond) and other.cond.tokens is self.cond.tokens

    def concat(self, others) -> ClipTokens:
        return ClipTokens(self.cond.tokens, sum((other.cond.negative for other in others), self.cond.negative))


@dataclass(frozen=True, eq=False)
class SubjectLatents:
    """VAE latents of the subject at the three pyramid sizes, lowest first, as the VAE returns them (unscaled).

    `levels[l]`: `[rows, entries, C, h_l, w_l]`; rows as in `SubjectTokens`. Mode "generate": entries are the subject and, for
    more than one frame, the black frame; `pictures` 2: first frame, last frame, black. Mode "edit": one entry a frame.
    """

    levels: tuple[Tensor, ...]
    frames: int
    mode: str
    pictures: int = 1
    key: UUID = field(default_factory=uuid4)

    @property
    def entries(self) -> int:
        return self.levels[0].shape[1]

    def frame_entries(self, window: Sequence[int]) -> list[int]:
        """Which entry each frame of `window` takes. In generation the subject stands at position 0 of every window."""
        if self.mode == EDIT:
            return list(window)
        return [0] + [1] * (len(window) - 1)

    def picture_entries(self, window: Sequence[int]) -> list[int | None]:
        """As `frame_entries`, for weights that want the subject in every frame: one picture in all of them, two at the clip's
        first and last frame and nothing (None: zeros) between."""
        if self.mode == EDIT:
            return list(window)
        if self.pictures == 1:
            return [0] * len(window)
        return [{0: 0, self.frames - 1: 1}.get(number) for number in window]

    def distance(self, frame: int) -> int:
        """Frames between `frame` and the nearest one that has a picture of its own."""
        if self.mode == EDIT:
            return 0
        return frame if self.pictures == 1 else min(frame, self.frames - 1 - frame)


@dataclass(frozen=True)
class LatentsOfArea:
    """Subject latents and the area (h, w, y, x) in latent pixels that a conditioning covers; None = all of the picture."""

    latents: SubjectLatents
    area: tuple[int, ...] | None


class SubjectLatentsCond(comfy.conds.CONDConstant):
    """Subject latents; a conditioning that covers an area of the picture uses the same area of them."""

    def process_cond(self, batch_size, area=None, **kwargs):
        return comfy.conds.CONDConstant(LatentsOfArea(self.cond, None if area is None else tuple(area)))


def attach(conditioning: list, negative: bool = False, **entries: SubjectTokens | AlphaSettings | SubjectLatents) -> list:
    """A copy of `conditioning` with our entries (`tokens`, `alphas`, `latents`) added to the `model_conds` of each item.

    `negative`: this is the negative conditioning, which matters for tokens with an entry of their own for it.
    """
    conds = {}
    if "tokens" in entries:
        conds[COND_TOKENS] = _tokens_cond(entries["tokens"], negative)
    if "alphas" in entries:
        conds[COND_ALPHAS] = comfy.conds.CONDConstant(entries["alphas"])
    if "latents" in entries:
        conds[COND_LATENTS] = SubjectLatentsCond(entries["latents"])
    return [[text, {**extras, "model_conds": {**extras.get("model_conds", {}), **conds}}] for text, extras in conditioning]


def _tokens_cond(tokens: SubjectTokens, negative: bool) -> comfy.conds.CONDConstant:
    if not tokens.negative_entry:
        return comfy.conds.CONDConstant(tokens)
    return SubjectTokensCond(ClipTokens(tokens, (negative,)))


def attached(model_conds: dict) -> dict:
    """Our payloads in a `model_conds` dict: a dict with any of `tokens`, `alphas`, `latents`."""
    names = {COND_TOKENS: "tokens", COND_ALPHAS: "alphas", COND_LATENTS: "latents"}
    found = {name: model_conds[key].cond for key, name in names.items() if key in model_conds}
    if isinstance(found.get("tokens"), ClipTokens):
        found["tokens"] = found["tokens"].tokens
    return found
