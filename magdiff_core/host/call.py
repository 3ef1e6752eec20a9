"""The state of one call of the UNet: which adapter, how many clips and frames, and what the layers hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapter import MagDiffAdapter
from ..alignment.apa import AlphaSettings
from ..config import ALL_FRAMES, TOKENS_OF_PICTURE
from ..temporal.position import frame_positions
from .conds import LatentsOfArea, SubjectTokens
from .run_cache import NoCache, RunCache


@dataclass(frozen=True)
class PartStrengths:
    """Strength of each part of the adapter, 0 .. 1; a part at 0 is not installed at all."""

    temporal: float = 1.0
    image_stream: float = 1.0
    pyramid: float = 1.0
    base: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"strength of {name} is {value}: choose a number from 0 (off) to 1 (as trained)")


@dataclass
class Call:
    """One call: `clips` rows of `frames` frames each; frames of a clip are neighbours in the batch.

    `window`: numbers of these frames in the whole clip of `total_frames`; `anchored`: the first is core's anchor, which stands
    before the window. `negative`: for each clip whether it reads the
    negative's entry of `tokens`; empty where there is none. `slider_text`, `slider_image`: factors of the user, floats, or
    scalars on the device when they depend on the step. `fps`: frame rate of the user, None = as trained.
    """

    adapter: MagDiffAdapter
    strengths: PartStrengths
    unet: torch.nn.Module
    clips: int
    frames: int
    window: tuple[int, ...]
    total_frames: int
    cache: RunCache | type[NoCache]
    alphas: AlphaSettings = field(default_factory=AlphaSettings)
    slider_text: float | Tensor = 1.0
    slider_image: float | Tensor = 1.0
    anchored: bool = False
    tokens: SubjectTokens | None = None
    negative: tuple[bool, ...] = ()
    latents: LatentsOfArea | None = None
    scale_latent: callable = None
    fps: float | None = None
    one_prompt_per_clip: bool = False
    owned_attention: frozenset[str] = frozenset()

    # What layers hand on while the call runs.
    transformer: str = ""
    stream: Tensor | None = None
    last_output: Tensor | None = None

    @property
    def temporal(self):
        """The temporal part, or None where the adapter has none or it is off."""
        return self.adapter.temporal if self.strengths.temporal > 0.0 else None

    @property
    def clip_norm(self) -> bool:
        """Whether norms of ResBlocks and the last norm run over the clip in this call."""
        return self.temporal is not None and self.adapter.config.clip_norm

    def positions(self, channels: int, like: Tensor) -> Tensor:
        """Frame positions `[F, channels]` in the dtype and on the device of `like`."""
        key = ("positions", self.frames, channels, like.device, like.dtype)
        return self.cache.get(key, lambda: frame_positions(self.frames, channels, like.device, like.dtype))

    def image_tokens(self, like: Tensor) -> Tensor:
        """Image tokens of every entry `[rows, entries, L, D]` in the dtype and on the device of `like`."""

        def compute() -> Tensor:
            hidden = self.tokens.layers[self.adapter.config.image_encoder.layer].to(like)
            rows, entries = hidden.shape[:2]
            tokens = hidden.flatten(0, 1)
            if self.adapter.projector is not None:
                tokens = self.adapter.projector(tokens)
            return tokens.unflatten(0, (rows, entries))

        return self.cache.get(("tokens", self.tokens.key, like.device, like.dtype), compute)

    def image_key_value(self, site: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the image tokens of this window: `[clips, L, C]` where all frames of a clip read the same ones,
        `[clips * F, L, C]` where each frame has its own."""

        def project() -> tuple[Tensor, ...]:
            tokens = self.image_tokens(like)
            projected = self.adapter.apa.find(site).key_value(tokens.flatten(1, 2))
            return tuple(states.unflatten(1, tokens.shape[1:3]) for states in projected)

        # Each entry is projected once a run. Only the layout by frame is made at each call: black frames share an entry, and
        # keeping a layout for every window of a long clip would fill the memory.
        projected = self.cache.get(("image key value", site, self.tokens.key, like.device, like.dtype), project)
        if self.adapter.config.image_tokens == TOKENS_OF_PICTURE:
            return tuple(self._by_picture(states) for states in projected)
        index = self._index(self.tokens.frame_entries(self.total_frames, self.window), like)
        key, value = (states.index_select(1, index).flatten(1, 2).expand(self.clips, -1, -1) for states in projected)
        return key, value

    def _by_picture(self, states: Tensor) -> Tensor:
        """`[rows, entries, L, C]` -> what each frame reads of its own picture, laid out as `image_key_value` gives it."""
        entries = self.tokens.picture_entries(self.total_frames, self.window)
        share = self.adapter.config.tokens_per_frame
        # The frame that core puts before a window has no share of its own, and what it gives is dropped.
        lead = int(self.anchored)
        sliced = share > 0 and states.shape[2] == (self.frames - lead) * share

        def of(entries: list[int]) -> Tensor:
            """`[rows, F, L, C]`, or `[rows, 1, L, C]` for all frames."""
            picked = states.index_select(1, self._index(entries, states))
            if not sliced:
                return picked
            shares = picked.unflatten(2, (self.frames - lead, share))
            places = [max(0, j - lead) for j in range(self.frames)]
            return torch.stack([shares[:, j if len(entries) > 1 else 0, place] for j, place in enumerate(places)], dim=1)

        positive = of(entries)
        if not any(self.negative):
            return positive.expand(self.clips, -1, -1, -1).flatten(0, 1)
        negative = of([self.tokens.subject_entries] * len(entries))
        return torch.cat([negative if is_negative else positive for is_negative in self.negative]).flatten(0, 1)

    def fps_term(self, like: Tensor) -> Tensor:
        """What the frame rate adds to the time embedding, `[1, width]`."""
        rate = self.adapter.config.fps if self.fps is None else self.fps
        return self.cache.get(("fps", rate, like.device, like.dtype), lambda: self.temporal.fps_embedding.of(rate, like))

    def subject_term(self, like: Tensor) -> Tensor:
        """`conv_z(z_s)` of this window `[clips or 1, F, C0, h, w]`."""
        latents, area = self.latents.latents, self.latents.area
        everywhere = self.adapter.config.subject_frames == ALL_FRAMES

        def compute() -> Tensor:
            levels = [self.scale_latent(level.flatten(0, 1).to(like)) for level in latents.levels]
            term = self.adapter.hfa(levels).unflatten(0, latents.levels[0].shape[:2])
            # A last entry of zeros stands for frames without any picture.
            return torch.cat((term, torch.zeros_like(term[:, :1])), dim=1) if everywhere and latents.pictures > 1 else term

        term = self.cache.get(("subject term", latents.key, like.device, like.dtype), compute)
        if everywhere:
            entries = [latents.entries if entry is None else entry for entry in latents.picture_entries(self.window)]
        else:
            entries = latents.frame_entries(self.window)
        term = term.index_select(1, self._index(entries, like))
        if self.adapter.hfa.affinity:
            term = term + self._affinity_term(like)
        if area is not None:
            height, width, top, left = area
            term = term[..., top : top + height, left : left + width]
        return term

    def _affinity_term(self, like: Tensor) -> Tensor:
        """What the nearness of each frame of this window to the picture adds to `subject_term`, `[F, C0, h, w]`."""
        latents = self.latents.latents
        table = self.adapter.config.affinity
        nearness = tuple(table[min(latents.distance(number), len(table) - 1)] for number in self.window)

        def compute() -> Tensor:
            whole = self.adapter.hfa.affinity_term(latents.levels[0][0].to(like))
            return torch.tensor(nearness, device=like.device, dtype=like.dtype)[:, None, None, None] * whole

        return self.cache.get(("affinity", latents.key, nearness, like.device, like.dtype), compute)

    def _index(self, entries: list[int], like: Tensor) -> Tensor:
        key = ("index", tuple(entries), like.device)
        return self.cache.get(key, lambda: torch.tensor(entries, device=like.device))
