"""The tables as Markdown: one line a variant, and how far it is from the one that it is compared with."""

from __future__ import annotations

from .evaluate import SHARES
from .figures import Figure, difference, figure
from .variants import Study

COLUMNS = {
    "motion": "motion", "background": "background colour", "leak": "its leak", "pull": "its pull", "first_pull": "in frame 1",
    "pattern": "pattern", "pattern_leak": "its leak", "nearest": "nearest of 8", "subject_rmse": "subject RMSE",
    "kept_psnr": "kept dB",
}  # fmt: skip
LOSS = "training loss"
DIGITS = {"pull": 2, "first_pull": 2, "subject_rmse": 3, "kept_psnr": 1, LOSS: 4}

Results = dict[str, list[dict]]
"""Of each variant, one entry a seed: what `evaluate` measured, and `loss` at the end of training."""


def cell(value: Figure, name: str, signed: bool = False) -> str:
    """`mean ± over clips ± over seeds`, of those spreads that there are; shares in percent."""
    scale, digits = (100, 0) if name in SHARES else (1, DIGITS[name])
    numbers = [f"{scale * value.mean:{'+' if signed else ''}.{digits}f}"]
    numbers += [f"{scale * error:.{digits}f}" for error in (value.over_clips, value.over_seeds) if error is not None]
    return " ± ".join(numbers)


def compare(study: Study, results: Results, mode: str) -> list[list[str]]:
    """Head, a line a variant, and a line for its distance from `study.against` with the same seeds, as far as both have
    them, and the same clips.

    The losses are comparable too: trainings with one seed see the same batches and the same noise, unless the variant changes
    what a batch holds.
    """
    present = [variant for variant in study.variants if results.get(variant)]
    names = [name for name in COLUMNS if name in results[present[0]][0][mode]]

    def values(variant: str, name: str) -> list[list[float]]:
        return [[result["loss"]] if name == LOSS else result[mode][name] for result in results[variant]]

    lines = [["", *(COLUMNS[name] for name in names), LOSS]]
    names.append(LOSS)
    lines += [[variant, *(cell(figure(values(variant, name)), name) for name in names)] for variant in present]
    if study.against in present:
        for variant in present:
            if variant != study.against:
                both = min(len(results[variant]), len(results[study.against]))
                apart = {name: difference(values(variant, name)[:both], values(study.against, name)[:both]) for name in names}
                lines.append([f"{variant} - {study.against}", *(cell(apart[name], name, signed=True) for name in names)])
    return lines


def alphas(results: Results) -> list[list[str]]:
    """Head, and a line a training: the weights of text and image in each cross-attention."""
    sites = next(result["alphas"] for trainings in results.values() for result in trainings)
    lines = [["text, image", *sites]]
    for variant, trainings in results.items():
        for seed, result in enumerate(trainings):
            pairs = (f"{text:.2f}, {image:.2f}" for text, image in result["alphas"].values())
            lines.append([f"{variant}, seed {seed}", *pairs])
    return lines


def markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])
