"""Makes the held-out clips with one trained variant, through the shipped nodes, and measures them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.mini.cases import Case
from benchmarks.mini.pipeline import ADAPTER, EDIT, GENERATE, Pipeline
from magdiff_core.metrics.clip import measure_clip, split_clip
from magdiff_core.metrics.leak import background_pull, mean_background
from magdiff_core.metrics.region import region_psnr
from magdiff_core.train.alignments import Alignments

SHARES = ("motion", "background", "leak", "pattern", "pattern_leak", "nearest")
"""Measures that are 1 or 0 on a clip. leak, pattern_leak: the background has the colour, the pattern of the reference picture's."""


def measures_of(clip: Tensor, case: Case, edit: bool) -> dict[str, float]:
    """`SHARES`, `pull` and `first_pull` (`background_pull` of all frames and of the first), `subject_rmse` of a clip
    `[F, 64, 64, 3]` in 0..1.

    `kept_psnr` (dB) of edits alone, `pattern_leak` where the prompt's pattern is not the reference's anyway.
    """
    found = measure_clip(clip, case.candidates)
    true, true_mask = (case.edit_target, case.source_mask) if edit else (case.target, case.target_mask)
    colours = mean_background(true, true_mask), mean_background(case.source, case.source_mask)
    subject_mask = split_clip(clip)[0]
    measures = {
        "motion": float(found.motion == (case.edit_motion if edit else case.motion)),
        "background": float(found.background_colour == case.background_colour),
        "leak": float(found.background_colour == case.source_background_colour),
        "pattern": float(found.pattern == case.pattern),
        "pull": background_pull(mean_background(clip, subject_mask), *colours),
        "first_pull": background_pull(mean_background(clip[:1], subject_mask[:1]), *colours),
        "nearest": float(found.nearest == 0),
        "subject_rmse": found.subject_rmse,
    }
    if case.pattern != case.source_pattern:
        measures["pattern_leak"] = float(found.pattern == case.source_pattern)
    if edit:
        measures["kept_psnr"] = region_psnr(clip, case.source, case.kept)[0]
    return measures


def make(pipeline: Pipeline, case: Case, alignments: Alignments, mode: str, **sampling: object) -> Tensor:
    """A clip of the case by a model that was trained with `alignments`: what it never saw in training is not given to it."""
    given = slice(None) if mode == EDIT else slice(0, 1)
    return pipeline.make(
        case.edit_prompt if mode == EDIT else case.prompt,
        case.source[given],
        case.source_mask[given] if alignments.sda else None,
        len(case.source),
        mode,
        alpha_image=1.0 if alignments.apa else 0.0,
        pyramid_strength=1.0 if alignments.hfa else 0.0,
        **sampling,
    )


def learned_alphas(models: Path) -> dict[str, list[float]]:
    """(text, image) of each cross-attention of the adapter in `models`, from the first to the last."""
    weights = load_file(models / ADAPTER)
    sites = sorted({key.removesuffix(".alpha_text") for key in weights if key.endswith(".alpha_text")}, key=_place)
    return {
        site.removeprefix("apa."): [float(weights[f"{site}.{name}"]) for name in ("alpha_text", "alpha_image")] for site in sites
    }


def _place(site: str) -> tuple:
    part = [part for part in ("input_blocks", "middle_block", "output_blocks") if part in site][0]
    numbers = [int(name) for name in site.split(".") if name.isdigit()]
    return ("input_blocks", "middle_block", "output_blocks").index(part), numbers


def evaluate(
    models: Path,
    cases: list[Case],
    alignments: Alignments,
    edits: bool,
    shown: int,
    seed: int,
    **sampling: object,
) -> tuple[dict, dict[str, Tensor]]:
    """Measurements of one training, `{mode: {measure: one value a clip}}`, and the first `shown` clips of each mode, uint8
    `[N, F, 64, 64, 3]`.

    `models`: folder with its two files. `sampling`: `steps` and `cfg`; clip i takes the noise of `seed + i`.
    """
    pipeline = Pipeline(models, bfloat16=True)
    results: dict = {"alphas": learned_alphas(models)}
    clips = {}
    for mode in (GENERATE, EDIT) if edits else (GENERATE,):
        made = [make(pipeline, case, alignments, mode, seed=seed + index, **sampling) for index, case in enumerate(cases)]
        rows = [measures_of(clip, case, mode == EDIT) for clip, case in zip(made, cases)]
        names = {name for row in rows for name in row}
        results[mode] = {name: [row[name] for row in rows if name in row] for name in sorted(names)}
        clips[mode] = (torch.stack(made[:shown]).clamp(0, 1) * 255).round().to(torch.uint8)
    return results, clips
