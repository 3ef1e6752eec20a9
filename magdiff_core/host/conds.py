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
    frames (1, or one a frame of the clip) and, when `black_entry`, last the black frame.
    """

    layers: Mapping[str, Tensor]
    black_entry: bool
    key: UUID = field(default_factory=uuid4)

    @property
    def subject_entries(self) -> int:
        return next(iter(self.layers.values())).shape[1] - int(self.black_entry)

    def frame_entries(self, total_frames: int, window: Sequence[int]) -> list[int]:
        """Which entry each frame of `window` (frame numbers of the whole clip) takes.

        One subject entry stands at position 0 and the black one at all others (none where there is no black entry: the order
        of image tokens carries no meaning). Otherwise frame j takes entry j. Raises ValueError for any other count.
        """
        if self.subject_entries == total_frames:
            return list(window)
        if self.subject_entries == 1:
            return [0] + ([1] * (len(window) - 1) if self.black_entry else [])
        raise ValueError(
            f"clip_vision_output holds {self.subject_entries} subject frames, the clip has {total_frames} frames: "
            f"encode 1 picture (generation) or {total_frames} (editing)"
        )


@dataclass(frozen=True, eq=False)
class SubjectLatents:
    """VAE latents of the subject at the three pyramid sizes, lowest first, as the VAE returns them (unscaled).

    `levels[l]`: `[rows, entries, C, h_l, w_l]`; rows as in `SubjectTokens`. Mode "generate": entries are the subject and, for
    more than one frame, the black frame. Mode "edit": one entry a frame.
    """

    levels: tuple[Tensor, ...]
    frames: int
    mode: str
    key: UUID = field(default_factory=uuid4)

    def frame_entries(self, window: Sequence[int]) -> list[int]:
        """Which entry each frame of `window` takes. In generation the subject stands at position 0 of every window."""
        if self.mode == EDIT:
            return list(window)
        return [0] + [1] * (len(window) - 1)


@dataclass(frozen=True)
class LatentsOfArea:
    """Subject latents and the area (h, w, y, x) in latent pixels that a conditioning covers; None = all of the picture."""

    latents: SubjectLatents
    area: tuple[int, ...] | None


class SubjectLatentsCond(comfy.conds.CONDConstant):
    """Subject latents; a conditioning that covers an area of the picture uses the same area of them."""

    def process_cond(self, batch_size, area=None, **kwargs):
        return comfy.conds.CONDConstant(LatentsOfArea(self.cond, None if area is None else tuple(area)))


def attach(conditioning: list, **entries: SubjectTokens | AlphaSettings | SubjectLatents) -> list:
    """A copy of `conditioning` with our entries (`tokens`, `alphas`, `latents`) added to the `model_conds` of each item."""
    conds = {}
    if "tokens" in entries:
        conds[COND_TOKENS] = comfy.conds.CONDConstant(entries["tokens"])
    if "alphas" in entries:
        conds[COND_ALPHAS] = comfy.conds.CONDConstant(entries["alphas"])
    if "latents" in entries:
        conds[COND_LATENTS] = SubjectLatentsCond(entries["latents"])
    return [[text, {**extras, "model_conds": {**extras.get("model_conds", {}), **conds}}] for text, extras in conditioning]


def attached(model_conds: dict) -> dict:
    """Our payloads in a `model_conds` dict: a dict with any of `tokens`, `alphas`, `latents`."""
    names = {COND_TOKENS: "tokens", COND_ALPHAS: "alphas", COND_LATENTS: "latents"}
    return {name: model_conds[key].cond for key, name in names.items() if key in model_conds}
