"""The rows of the benchmark's table: how each clip is made, and what is measured on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from torch import Tensor

from magdiff_core.metrics.clip import measure_clip
from magdiff_core.metrics.region import region_psnr

from .cases import Case
from .pipeline import EDIT, Pipeline

TRUE, AUTOENCODER, GENERATE_ROW, SHUFFLED, NO_IMAGE, NO_PYRAMID, EDIT_ROW = (
    "true pixels", "autoencoder only", "generate", "shuffled subject", "alpha_image 0", "pyramid 0", "edit",
)  # fmt: skip
ACCURACIES = ("motion", "background", "pattern", "nearest")
MEANS = ("subject_rmse", "flicker", "kept_psnr", "seconds")


@dataclass
class Row:
    """Measurements of one way to make the clips, one entry a clip; `clips` holds the first few for the contact sheet.

    Hits are 1 or 0: `motion`, `background` (colour), `pattern`, `nearest` (the given subject explains the clip better than
    7 others). `subject_rmse` and `flicker` are in 0..1, `kept_psnr` is in dB, `seconds` a clip with encoding and decoding.
    """

    motion: list[int] = field(default_factory=list)
    background: list[int] = field(default_factory=list)
    pattern: list[int] = field(default_factory=list)
    nearest: list[int] = field(default_factory=list)
    subject_rmse: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    kept_psnr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    measured: list[dict] = field(default_factory=list)
    clips: list[Tensor] = field(default_factory=list)

    def mean(self, name: str) -> float:
        """Mean of one measurement; NaN where it was not made."""
        values = getattr(self, name)
        return sum(values) / len(values) if values else math.nan

    def error(self, name: str) -> float:
        """Standard error of `mean(name)`: of a share p of N clips sqrt(p (1 - p) / N), else deviation / sqrt(N)."""
        values = getattr(self, name)
        if len(values) < 2:
            return math.nan
        mean = self.mean(name)
        if name in ACCURACIES:
            return math.sqrt(mean * (1 - mean) / len(values))
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))

    def summary(self) -> dict[str, dict[str, float | None]]:
        """`{name: {"mean", "error"}}` of everything that was measured; the error of a single clip is None."""
        return {
            name: {"mean": self.mean(name), "error": None if math.isnan(self.error(name)) else self.error(name)}
            for name in (*ACCURACIES, *MEANS)
            if getattr(self, name)
        }


@dataclass(frozen=True)
class Settings:
    """How clips are sampled; clip i takes the noise of `seed + i` in every row."""

    seed: int
    steps: int
    cfg: float
    sheet_rows: int


def _generate(pipeline: Pipeline, case: Case, seed: int, settings: Settings, **changes: object) -> Tensor:
    given = {"pictures": case.source[:1], "subject_mask": case.source_mask[:1], **changes}
    return pipeline.make(
        case.prompt, frames=len(case.target), seed=seed, steps=settings.steps, cfg=settings.cfg, **given
    )


def _shuffled(pipeline: Pipeline, case: Case, seed: int, settings: Settings) -> Tensor:
    """Another subject's picture under this prompt: the prompt alone must not make the subject that it names."""
    other = case.others[0]
    return _generate(pipeline, case, seed, settings, pictures=other.picture[None], subject_mask=other.subject_mask[None])


def _edit(pipeline: Pipeline, case: Case, seed: int, settings: Settings) -> Tensor:
    return pipeline.make(
        case.edit_prompt, case.source, case.source_mask, len(case.source), EDIT, seed, settings.steps, settings.cfg
    )


MAKERS: dict[str, Callable[[Pipeline, Case, int, Settings], Tensor]] = {
    TRUE: lambda pipeline, case, seed, settings: case.target,
    AUTOENCODER: lambda pipeline, case, seed, settings: pipeline.autoencode(case.target),
    GENERATE_ROW: _generate,
    SHUFFLED: _shuffled,
    NO_IMAGE: lambda *given: _generate(*given, alpha_image=0.0),
    NO_PYRAMID: lambda *given: _generate(*given, pyramid_strength=0.0),
    EDIT_ROW: _edit,
}


def measure(row: Row, name: str, case: Case, clip: Tensor, keep_clip: bool) -> None:
    """Adds one clip to a row."""
    found = measure_clip(clip, case.candidates)
    row.motion.append(int(found.motion == (case.edit_motion if name == EDIT_ROW else case.motion)))
    row.background.append(int(found.background_colour == case.background_colour))
    row.pattern.append(int(found.pattern == case.pattern))
    row.nearest.append(int(found.nearest == 0))
    row.subject_rmse.append(found.subject_rmse)
    row.flicker.append(found.flicker)
    row.measured.append(asdict(found))
    if name == EDIT_ROW:
        row.kept_psnr.append(region_psnr(clip, case.source, case.kept)[0])
    if keep_clip:
        row.clips.append(clip)


def run(pipeline: Pipeline, cases: list[Case], settings: Settings, progress: Callable[[str, int], None]) -> dict[str, Row]:
    """Makes and measures all clips of all rows; `progress(row, clips done)` is called after each."""
    rows = {name: Row() for name in MAKERS}
    for name, make in MAKERS.items():
        row = rows[name]
        for index, case in enumerate(cases):
            started = time.perf_counter()
            clip = make(pipeline, case, settings.seed + index, settings)
            if name != TRUE:
                row.seconds.append(time.perf_counter() - started)
            measure(row, name, case, clip, index < settings.sheet_rows)
            if name == AUTOENCODER:
                # The region of the edit on the edit's own true pixels: what the autoencoder alone costs there.
                decoded = pipeline.autoencode(case.edit_target)
                row.kept_psnr.append(region_psnr(decoded, case.edit_target, case.kept)[0])
            progress(name, index + 1)
    return rows
