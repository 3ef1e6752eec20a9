"""Clips for the trainer as what the UNet reads: latents, text, and the subject the way the shipped nodes encode it."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .attach import adapter_of
from .conds import GENERATE, SubjectLatents, SubjectTokens
from .encode import encode_subject_pyramid, encode_subject_tokens, subject_tokens
from .training_base import fingerprint

LEVELS = 3


@dataclass
class Encoders:
    """What turns clips into tensors. `model`: with the adapter, which says how its subject is to be encoded. `with_subject`: False
    for training without one; `clip_vision` may be None then, or where the adapter has no image stream."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    clip_vision: ClipVisionModel | None
    with_subject: bool = True

    def __post_init__(self) -> None:
        adapter = adapter_of(self.model).model
        self.has_tokens = self.with_subject and adapter.apa is not None
        self.has_pyramid = self.with_subject and adapter.hfa is not None
        if self.has_tokens and self.clip_vision is None:
            raise ValueError(
                "the image stream needs an image encoder: name one with --clip-vision (CLIP-ViT-H-14 for SD2.1) or wire one"
            )

    def fingerprint(self) -> str:
        """Changes when any of the encoders does, and with how the subject is encoded."""
        modules = [self.clip.cond_stage_model, self.vae.first_stage_model]
        wanted = f"{self.has_pyramid} {adapter_of(self.model).model.config.image_encoder}" if self.has_tokens else self.has_pyramid
        return fingerprint(*modules, *([self.clip_vision.model] if self.has_tokens else [])) + f" {wanted}"

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """`[L, D]` float32, as CLIP Text Encode gives it. Of long captions the first L tokens, as many as an empty prompt has."""
        rows = [self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in ("", prompt)]
        return _plain(rows[1][0, : rows[0].shape[1]])

    @torch.no_grad()
    def latents(self, frames: Tensor) -> Tensor:
        """Frames `[F, H, W, 3]` -> `[F, C, h, w]` float32, not scaled."""
        return _plain(self.vae.encode(frames))

    @torch.no_grad()
    def subject(self, picture: Tensor) -> dict[str, Tensor]:
        """The subject on black `[1, H, W, 3]`: `hidden [L, W]` and `level_0..2 [C, h_l, w_l]`, as far as the adapter has a use for
        them. The black frame belongs to `common`."""
        found = {}
        if self.has_tokens:
            found["hidden"] = self._hidden(picture)[0][0]
        if self.has_pyramid:
            found |= {f"level_{level}": latent for level, latent in enumerate(self._levels(picture))}
        return found

    @torch.no_grad()
    def common(self, size: int) -> dict[str, Tensor]:
        """What every clip shares: `text` of the empty prompt; `hidden` and `level_*` of entries after the subject's, `[n, ...]`."""
        black = torch.zeros(1, size, size, 3)
        shared = {"text": self.text("")}
        if self.has_tokens:
            hidden, flags = self._hidden(black)
            shared |= {"hidden": hidden[1:], "flags": torch.tensor(flags)}
        if self.has_pyramid:
            shared |= {f"level_{level}": latent[None] for level, latent in enumerate(self._levels(black))}
        return shared

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Latents `[F, C, h, w]`, not scaled -> frames `[F, H, W, 3]` in 0..1."""
        return _plain(self.vae.decode(latents)).clamp(0.0, 1.0)

    @staticmethod
    def free() -> None:
        """Take the encoders off the device, until one is used again."""
        comfy.model_management.unload_all_models()

    def _hidden(self, picture: Tensor) -> tuple[Tensor, list[bool]]:
        tokens = subject_tokens(encode_subject_tokens(self.model, self.clip_vision, picture))
        layer = adapter_of(self.model).model.config.image_encoder.layer
        return _plain(tokens.layers[layer][0]), [tokens.black_entry, tokens.negative_entry]

    def _levels(self, picture: Tensor) -> list[Tensor]:
        height, width = picture.shape[1:3]
        pyramid, _ = encode_subject_pyramid(self.vae, picture, GENERATE, width, height, 1, "crop")
        return [_plain(level[0, 0]) for level in pyramid.levels]


@torch.no_grad()
def token_width(clip_vision: ClipVisionModel) -> int:
    """Width of the image encoder's hidden states."""
    return clip_vision.encode_image(torch.zeros(1, 64, 64, 3)).last_hidden_state.shape[-1]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32, copy=True)


def conditioning(
    subjects: dict[str, Tensor], common: dict[str, Tensor], layer: str, frames: int
) -> tuple[SubjectTokens | None, SubjectLatents | None]:
    """Payloads for `TrainingModel` from encoded subjects, a row a clip (`hidden [B, L, W]`, `level_* [B, C, h_l, w_l]`).

    `layer`: of the image encoder, as the adapter's config names it.
    """

    def entries(name: str) -> Tensor:
        subject = subjects[name][:, None]
        return torch.cat((subject, common[name].to(subject).expand(len(subject), *common[name].shape)), dim=1)

    tokens = latents = None
    if "hidden" in subjects:
        black_entry, negative_entry = (bool(flag) for flag in common["flags"])
        tokens = SubjectTokens({layer: entries("hidden")}, black_entry, negative_entry)
    if "level_0" in subjects:
        latents = SubjectLatents(tuple(entries(f"level_{level}") for level in range(LEVELS)), frames, GENERATE)
    return tokens, latents
