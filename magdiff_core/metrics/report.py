"""An evaluation as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math

from .evaluation import METRICS, Evaluation

FORMAT, VERSION = "magdiff-evaluation", 1


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _sizes(sizes: list[tuple[int, int, int]]) -> str:
    """Such as "3 clips of 16 frames, 512x320"."""
    kinds = sorted(set(sizes))
    text = "; ".join(f"{frames} frames, {width}x{height}" for frames, height, width in kinds[:3])
    more = "; and others" if len(kinds) > 3 else ""
    return f"{len(sizes)} {'clip' if len(sizes) == 1 else 'clips'} of {text}{more}"


def used_models(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """Name and SHA-256 of each model file, by kind."""
    models = evaluation.models
    given = {"clip": models.clip, "dino": models.dino, "i3d": models.i3d, "c3d": models.c3d}
    return {kind: {"file": model.record.name, "sha256": model.record.sha256} for kind, model in given.items() if model is not None}


def as_text(evaluation: Evaluation) -> str:
    """A table of the metrics, what they were measured with, and what to know about them."""
    rows = []
    for name, metric in METRICS.items():
        if name not in evaluation.value:
            continue
        value, spread = evaluation.value[name], evaluation.spread.get(name, math.nan)
        digits = 4 if "cosine" in metric.unit else 2
        shown = "-" if math.isnan(value) else f"{value:.{digits}f}"
        around = "" if math.isnan(spread) else f"+- {spread:.{digits}f}"
        rows.append((metric.title, shown, metric.unit, around))
    lines = [_sizes(evaluation.sizes)]
    if evaluation.real_sizes:
        lines.append(f"compared with {_sizes(evaluation.real_sizes)}")
    lines.append("")
    lines += [f"{title:<40}{shown:>9} {unit:<12}{around}".rstrip() for title, shown, unit, around in rows]
    lines.append("")
    lines += [f"{kind}: {file['file']}, SHA-256 {file['sha256'][:16]}..." for kind, file in used_models(evaluation).items()]
    lines += evaluation.notes
    lines += [f"Warning: {warning}." for warning in evaluation.warnings]
    return "\n".join(lines)


def as_json(evaluation: Evaluation) -> str:
    """All numbers: by metric the value, the spread, and per clip the value and the values per frame. NaN is null."""
    metrics = {}
    for name, metric in METRICS.items():
        if name not in evaluation.value:
            continue
        entry = {
            "title": metric.title,
            "unit": metric.unit,
            "value": _number(evaluation.value[name]),
            "spread": _number(evaluation.spread.get(name)),
        }
        if name in evaluation.clips:
            entry["clips"] = [
                {"value": _number(value), "frames": [_number(number) for number in by_frame]}
                for value, by_frame in evaluation.clips[name]
            ]
        metrics[name] = entry
    document = {
        "format": FORMAT,
        "version": VERSION,
        "clips": [{"frames": frames, "width": width, "height": height} for frames, height, width in evaluation.sizes],
        "real_clips": [{"frames": frames, "width": width, "height": height} for frames, height, width in evaluation.real_sizes],
        "models": used_models(evaluation),
        "metrics": metrics,
        "notes": evaluation.notes,
        "warnings": evaluation.warnings,
    }
    return json.dumps(document, indent=1, ensure_ascii=False)
