"""Measure clips one after another and sum up: the metrics of MagDiff (section 4.1) and ReVideo (section 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import frechet, inception_score, similarity
from .encoders import ClipEncoder, DinoEncoder, Step, VideoEncoder
from .inputs import MeasuredClip, check_clip, kept_region, subject_pictures
from .region import region_psnr

CLIPS_AT_ONCE = 8
"""Clips that a video network takes at once."""


@dataclass(frozen=True)
class Metric:
    """title: for people. unit: of the axis. per_frame: whether a frame has a value of its own."""

    title: str
    unit: str
    per_frame: bool = True


METRICS = {
    "psnr_outside": Metric("PSNR outside the edit region", "dB"),
    "psnr_inside": Metric("PSNR inside the edit region", "dB"),
    "psnr": Metric("PSNR of the whole picture", "dB"),
    "textual_alignment": Metric("Textual alignment (frame and prompt)", "CLIP cosine"),
    "consistency_consecutive": Metric("Frame consistency, consecutive pairs", "CLIP cosine"),
    "consistency_all_pairs": Metric("Frame consistency, all pairs", "CLIP cosine"),
    "dino_score": Metric("DINO score (frame and given subject)", "DINO cosine"),
    "fvd": Metric("FVD (Frechet video distance)", "", per_frame=False),
    "video_is": Metric("Video Inception Score", "", per_frame=False),
}
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Models:
    """The networks that the user gave; each may be missing."""

    clip: ClipEncoder | None = None
    dino: DinoEncoder | None = None
    i3d: VideoEncoder | None = None
    c3d: VideoEncoder | None = None

    def any(self) -> bool:
        return any(model is not None for model in (self.clip, self.dino, self.i3d, self.c3d))


@dataclass
class Evaluation:
    """What was measured: `value` and `spread` (standard deviation over clips; of the parts for video_is) by metric, `clips` by
    metric one (value, per frame) each, sizes of the clips, notes (how it was measured) and warnings."""

    models: Models
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    real_sizes: list[tuple[int, int, int]] = field(default_factory=list)
    value: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    clips: dict[str, list[similarity.PerFrame]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Evaluator:
    """Takes clips one at a time, so that a large set need not fit into memory.

    Args:
        models: what to measure with. Without any, only PSNR is left.
        step: called with the number of frames that a network has seen.
    """

    def __init__(self, models: Models, step: Step = lambda count: None) -> None:
        self.models, self.step = models, step
        self.result = Evaluation(models)
        self.made = {"i3d": _Collected(models.i3d, step), "c3d": _Collected(models.c3d, step)}
        self.real = _Collected(models.i3d, step)

    def add(self, clip: MeasuredClip) -> None:
        """Measure a clip.

        Raises:
            ValueError: the clip is not in order (see `check_clip`), nothing can be measured of it, or a model that is
                needed was not given.
        """
        clip = check_clip(clip)
        if not self.models.any() and clip.source_frames is None:
            raise ValueError(
                "there is nothing to measure: wire source_frames for the PSNR, or choose a model file (clip_model for the "
                "prompt and the consistency of frames)"
            )
        if clip.subject is not None and self.models.dino is None:
            raise ValueError("subject is wired but dino_model is none: choose a DINO file, which the DINO score is measured with")
        if self.models.dino is not None and clip.subject is None:
            raise ValueError("dino_model is chosen but subject is not wired: wire the picture of the subject that was given")
        if clip.prompt.strip() and self.models.clip is None:
            self._note("The prompt was not compared with the frames: clip_model is none.")
        self.result.sizes.append(tuple(clip.frames.shape[:3]))
        self._add_psnr(clip)
        self._add_clip(clip)
        self._add_dino(clip)
        for collected in self.made.values():
            collected.add(clip.frames)

    def add_real(self, frames: Tensor) -> None:
        """Add a real clip `[F, H, W, 3]`, which FVD compares with. Raises ValueError without an I3D model."""
        if self.models.i3d is None:
            raise ValueError("real_clips is wired but i3d_model is none: choose an I3D file, which FVD is measured with")
        checked = check_clip(MeasuredClip(frames)).frames
        self.result.real_sizes.append(tuple(checked.shape[:3]))
        self.real.add(checked)

    def finish(self) -> Evaluation:
        """Sum up. Raises ValueError when FVD has fewer than 2 clips on a side, or clips of different lengths."""
        result = self.result
        for name, values in result.clips.items():
            result.value[name], result.spread[name] = similarity.mean_and_spread([value for value, _ in values])
        if self.models.i3d is not None:
            self._add_fvd()
        if self.models.c3d is not None:
            self._add_video_is()
        if any(psnr in result.value for psnr in ("psnr", "psnr_outside")):
            self._note("Equal pixels count as 100 dB.")
        return result

    def _note(self, text: str) -> None:
        if text not in self.result.notes:
            self.result.notes.append(text)

    def _keep(self, name: str, measured: similarity.PerFrame) -> None:
        self.result.clips.setdefault(name, []).append(measured)

    def _add_psnr(self, clip: MeasuredClip) -> None:
        if clip.source_frames is None:
            return
        if clip.edit_mask is None and clip.keep_mask is None:
            self._keep("psnr", region_psnr(clip.frames, clip.source_frames, kept_region(clip)))
            return
        kept = kept_region(clip)
        self._keep("psnr_outside", region_psnr(clip.frames, clip.source_frames, kept))
        self._keep("psnr_inside", region_psnr(clip.frames, clip.source_frames, 1 - kept))

    def _add_clip(self, clip: MeasuredClip) -> None:
        encoder = self.models.clip
        if encoder is None:
            return
        text, was_cut = encoder.text(clip.prompt) if clip.prompt.strip() else (None, False)
        features = encoder.pictures(clip.frames, self.step)
        if text is not None:
            self._keep("textual_alignment", similarity.with_each(features, text))
        if was_cut:
            places = encoder.text_tower.sizes.positions - 2
            self.result.warnings.append(f"the prompt is longer than CLIP reads, {places} words and signs: {clip.prompt!r}")
        if len(features) > 1:
            self._keep("consistency_consecutive", similarity.consecutive_pairs(features))
            self._keep("consistency_all_pairs", similarity.all_pairs(features))
        else:
            self._note("A clip of a single frame has no consistency of frames.")
        sizes = encoder.picture_tower.sizes
        self._note(
            f"CLIP sees the centre of each frame at {sizes.side}x{sizes.side} pixels (activation {sizes.activation}, "
            f"{sizes.heads} heads). Papers often print 100 times the cosine."
        )

    def _add_dino(self, clip: MeasuredClip) -> None:
        encoder = self.models.dino
        if encoder is None:
            return
        frames, held = subject_pictures(clip)
        if not held.any():
            raise ValueError("subject_mask is empty in all frames: there is no subject to compare")
        features = encoder.pictures(frames, self.step)
        features[~held] = math.nan
        self._keep("dino_score", similarity.with_each(features, encoder.pictures(clip.subject)))
        side = encoder.tower.sizes.side
        what = "whole frames" if clip.subject_mask is None else "the subject of each frame on black"
        self._note(f"The DINO score compares {what} with the given subject, at {side}x{side} pixels.")

    def _add_fvd(self) -> None:
        made, real = self.made["i3d"], self.real
        result = self.result
        if not result.real_sizes:
            raise ValueError("i3d_model is chosen but real_clips is not wired: FVD compares with a set of real clips")
        lengths = {count for count, _, _ in result.sizes}, {count for count, _, _ in result.real_sizes}
        if len(set.union(*lengths)) > 1:
            raise ValueError(
                f"frames has clips of {_either(lengths[0])} frames, real_clips of {_either(lengths[1])}: FVD depends on the "
                "length, cut all to the same"
            )
        if len(result.sizes) < 2 or len(result.real_sizes) < 2:
            raise ValueError(
                f"frames holds {_clips(len(result.sizes))}, real_clips {_clips(len(result.real_sizes))}: FVD compares two sets, "
                "give lists of 2 clips or more (it means something from about 2048 on)"
            )
        features, real_features = made.finish(), real.finish()
        result.value["fvd"] = frechet.frechet_distance(frechet.moments(features), frechet.moments(real_features))
        warning = frechet.count_warning(min(len(features), len(real_features)), features.shape[1])
        result.warnings += [warning] if warning else []
        self._note(f"FVD: {features.shape[1]} numbers of I3D a clip, at 224x224 pixels.{made.note()}")

    def _add_video_is(self) -> None:
        outputs = self.made["c3d"].finish()
        splits = inception_score.usual_splits(len(outputs))
        probabilities = inception_score.as_probabilities(outputs)
        self.result.value["video_is"], self.result.spread["video_is"] = inception_score.inception_score(probabilities, splits)
        classes, clips = outputs.shape[1], len(outputs)
        if clips < 10 * classes:
            self.result.warnings.append(
                f"Video IS of {clips} clips and {classes} classes is too low, as it cannot pass the number of clips. MagDiff "
                "uses 10,000"
            )
        self._note(f"Video IS in {splits} part(s), {classes} classes.{self.made['c3d'].note()}")


class _Collected:
    """Clips of one set, waiting until there are enough for a batch, and their features."""

    def __init__(self, encoder: VideoEncoder | None, step: Step) -> None:
        self.encoder, self.step = encoder, step
        self.waiting: list[Tensor] = []
        self.features: list[Tensor] = []
        self.lengths: set[tuple[int, int]] = set()

    def add(self, frames: Tensor) -> None:
        if self.encoder is None:
            return
        prepared = self.encoder.prepare(frames)
        self.lengths.add((len(frames), prepared.shape[1]))
        if self.waiting and self.waiting[0].shape != prepared.shape:
            self._run()
        self.waiting.append(prepared)
        if len(self.waiting) == CLIPS_AT_ONCE:
            self._run()
        self.step(len(frames))

    def _run(self) -> None:
        if self.waiting:
            self.features.append(self.encoder.clips(torch.stack(self.waiting)))
            self.waiting = []

    def finish(self) -> Tensor:
        """Features `[n, D]` of all clips."""
        self._run()
        return torch.cat(self.features)

    def note(self) -> str:
        changed = sorted((had, used) for had, used in self.lengths if had != used)
        return "".join(
            f" Clips of {had} frames were {'cut to' if used < had else 'slowed down to'} {used}." for had, used in changed
        )


def _either(lengths: set[int]) -> str:
    return " or ".join(str(length) for length in sorted(lengths))


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"
