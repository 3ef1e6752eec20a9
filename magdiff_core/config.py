"""Facts about an adapter that its tensors do not tell, as they stand in the metadata of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

FORMAT = "magdiff_adapter"
FORMAT_VERSION = "1"

TOKENS_OF_CLIP = "clip"
TOKENS_OF_PICTURE = "picture"
POOLED_LAYER = "pooled"
SAME_PICTURE = "same"
GREY_PICTURE = "grey"
ZERO_PICTURE = "zero"
FIRST_FRAME = "first"
ALL_FRAMES = "all"
SCALED_LINEAR = "scaled_linear"
LINEAR = "linear"


@dataclass(frozen=True)
class ImageEncoderConfig:
    """How the picture must be encoded: `width` of the tokens, hidden `layer` ("last" or "penultimate", or "pooled" for the one
    embedding of the whole picture), whether the picture is centre-cropped to a square, and the order of its colour `channels`
    ("rgb" or "bgr", as the weights were trained)."""

    width: int = 1280
    layer: str = "last"
    crop: bool = True
    channels: str = "bgr"


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise that the weights were trained with.

    `beta`: "scaled_linear" (Stable Diffusion) or "linear" (AnimateDiff), both 0.00085 .. 0.012 over 1000 steps.
    `zero_terminal_snr`: the last step is pure noise (Lin et al. 2024). `base_scale`, `turning_step`: latents are scaled by a factor
    that falls in a line from 1 to `base_scale` over the first `turning_step` steps and stays there (VideoCrafter, DynamiCrafter).
    """

    beta: str = SCALED_LINEAR
    zero_terminal_snr: bool = False
    base_scale: float = 1.0
    turning_step: int = 400


@dataclass(frozen=True)
class AdapterConfig:
    """Facts about an adapter that its tensors do not tell. Stored as JSON under `config` in the file's metadata.

    `base`: family of the base in words. `text_width`: width of its text, 0 = not known. `prediction`: "eps" or "v".
    `latent_scale`: factor of the base's VAE latents. `frames`: clip length of the training. `projector_heads`: attention heads of
    the Resampler. `clip_norm`: GroupNorm of ResBlocks and of the last norm runs over the clip. `licence`, `trained_from`: words
    for people. `base_hashes`: LDM key -> hash of the base tensor that `base.<key>` is a difference to.

    How the layers are to be run, by default as in MagDiff:
    `temporal_on_one_frame`: Temp-Conv acts on clips of one frame. `temporal_heads`: attention heads of layers that follow a
    whole layer of the base, 0 = one for each `temporal_head_width` channels. `image_tokens`: "clip" = every frame reads the
    tokens of all frames, "picture" = those of its own picture. `tokens_per_frame`: where a picture gives F times as many
    tokens, frame j reads the j-th share; 0 = never. `negative_picture`: what the negative's tokens are made of, "same" = the
    subject, "grey" = a grey picture, "zero" = zeros in the place of the encoder's input (of its embedding, for "pooled").
    `subject_frames`: which frames get the latent of a single subject picture, "first" = frame 0 (black elsewhere), "all" =
    every one. `affinity`: how near each frame is to the picture, from the first one on, the last value for all later frames: a
    channel before the subject latent; empty = no such channel. `fps`: the frame rate or stride that is embedded when the user
    names none. `max_frames`: most frames at once that the layers along time know positions for, 0 = any number. `schedule`: noise.
    """

    base: str = "SD2.1"
    text_width: int = 0
    prediction: str = "eps"
    latent_scale: float = 0.18215
    frames: int = 8
    projector_heads: int = 12
    clip_norm: bool = True
    temporal_on_one_frame: bool = False
    temporal_heads: int = 0
    temporal_head_width: int = 64
    image_tokens: str = TOKENS_OF_CLIP
    tokens_per_frame: int = 0
    negative_picture: str = SAME_PICTURE
    subject_frames: str = FIRST_FRAME
    affinity: tuple[float, ...] = ()
    fps: float = 0.0
    max_frames: int = 0
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    licence: str = ""
    trained_from: str = ""
    base_hashes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "affinity", tuple(self.affinity))

    def heads_of(self, width: int) -> int:
        """Attention heads of a layer along time that is `width` wide inside. Raises ValueError when they do not divide it."""
        heads = self.temporal_heads or max(1, width // self.temporal_head_width)
        if width % heads:
            raise ValueError(f"the config of this adapter gives {heads} temporal heads, which do not divide {width} channels")
        return heads

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file: `format`, `format_version` and `config`."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> AdapterConfig:
        """Read `to_metadata` back. Raises ValueError when the format or its version is not ours, or `config` is not readable."""
        metadata = metadata or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"not a MagDiff adapter: metadata format is {metadata.get('format')!r}, expected {FORMAT!r}")
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"MagDiff adapter of format version {metadata.get('format_version')!r}: this pack reads "
                f"version {FORMAT_VERSION}, update the pack"
            )
        try:
            stored = dict(json.loads(metadata["config"]))
            encoder = ImageEncoderConfig(**_known(ImageEncoderConfig, stored.pop("image_encoder", {})))
            schedule = ScheduleConfig(**_known(ScheduleConfig, stored.pop("schedule", {})))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged MagDiff adapter: the config in its metadata cannot be read ({error!r})") from error
        return cls(image_encoder=encoder, schedule=schedule, **_known(cls, stored))


def _known(kind: type, stored: Mapping) -> dict:
    """What `kind` has a field for: a newer pack may have written more."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in dict(stored).items() if name in names}
