"""Tables 5, 6 and 7 of the MagDiff paper in the small: variants of the small model, trained and measured.

    python dev.py run -m benchmarks.ablations {alignments,alphas} --out DIR [--train --steps N] [--seeds N] [--clips N]

alignments: without SDA, APA, HFA (Table 5). alphas: weights of text and image held or trained (Tables 6 and 7).

--train: every variant goes on from the shipped pair (or --start-from), all with the same steps and seeds. Each training lies
in DIR/VARIANT/seedN. What is finished is skipped, so a run that was stopped goes on where it was. Without --train the
trainings that are there are measured: same held-out cases and noise for all, sampled under bfloat16. Prints the tables
and writes them to DIR/table.md, everything measured to DIR/results.json, and the first clips to DIR/sheet.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.mini.cases import Case, make_cases
from benchmarks.mini.pipeline import ADAPTER, MissingModel, check_models
from magdiff_core.host import session
from magdiff_core.train.checkpoint import load_state

from . import table
from .evaluate import evaluate
from .sheet import draw
from .variants import STUDIES, Study

SHOWN = 4
STATE, MEASURED, CLIPS = "state.pt", "measured.json", "clips.pt"
"""In the folder of a training: what the trainer writes, what was measured, the first clips."""


def train(study: Study, variant: str, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Trains one variant, or the rest of it."""
    from magdiff_core.train import diffusion

    state = folder / STATE
    if (folder / ADAPTER).is_file() and state.is_file() and load_state(state)["step"] >= options.steps:
        return
    print(f"training {folder}", file=sys.stderr, flush=True)
    diffusion.run(
        folder, start_from=options.start_from, steps=options.steps, batch=options.batch, rate=options.rate, seed=seed,
        warm_up=options.warm_up, resume=True, alignments=study.variants[variant],
    )  # fmt: skip


def measure(study: Study, variant: str, folder: Path, cases: list[Case], options: argparse.Namespace) -> tuple[dict, dict]:
    """Measurements and clips of one training, from its folder if they were made with these settings."""
    trained = load_state(folder / STATE)
    settings = {name: getattr(options, name) for name in ("clips", "case_seed", "sampling_steps", "cfg")}
    settings["steps"] = trained["step"]
    file = folder / MEASURED
    if file.is_file():
        known = json.loads(file.read_text("utf-8"))
        if known["settings"] == settings:
            return known, torch.load(folder / CLIPS, weights_only=True)
    print(f"measuring {folder}", file=sys.stderr, flush=True)
    measured, clips = evaluate(
        folder, cases, study.variants[variant], study.edits, SHOWN, options.case_seed,
        steps=options.sampling_steps, cfg=options.cfg,
    )  # fmt: skip
    measured = {"settings": settings, "loss": trained["smooth"], **measured}
    torch.save(clips, folder / CLIPS)
    file.write_text(json.dumps(measured), "utf-8")
    return measured, clips


def report(study: Study, results: table.Results) -> str:
    parts = [f"# {study.title}"]
    modes = [mode for mode in ("generate", "edit") if mode in next(iter(results.values()))[0]]
    parts += [f"## {mode}\n\n{table.markdown(table.compare(study, results, mode))}" for mode in modes]
    parts.append(f"## alphas\n\n{table.markdown(table.alphas(results))}")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.ablations", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the trainings and the results")
    parser.add_argument("--train", action="store_true", help="train the variants that are not there yet")
    parser.add_argument("--start-from", type=Path, default=session.PACK_FOLDER / "models", help="pair of model files to go on from")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default 300)")
    parser.add_argument("--batch", type=int, default=4, help="clips a training step (default 4)")
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate (default 8e-4)")
    parser.add_argument("--warm-up", type=int, default=50, help="training steps in which the rate rises (default 50)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant (default 1)")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips a training (default 32)")
    parser.add_argument("--case-seed", type=int, default=1, help="draws the clips and their noise (default 1)")
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name in ("steps", "batch", "seeds", "clips"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}: at least 1 is needed")
    base = tempfile.TemporaryDirectory(prefix="magdiff-ablations-", ignore_cleanup_errors=True)
    session.start(base.name)  # previews go there
    torch.set_num_threads(options.threads)
    study = STUDIES[options.study]
    cases = make_cases(options.clips, options.case_seed)
    results: table.Results = {}
    clips: dict[str, dict[str, torch.Tensor]] = {}
    for seed in range(options.seeds):
        for variant in study.variants:
            folder = options.out / variant / f"seed{seed}"
            if options.train:
                train(study, variant, folder, seed, options)
            try:
                check_models(folder)
            except MissingModel:
                continue
            measured, made = measure(study, variant, folder, cases, options)
            results.setdefault(variant, []).append(measured)
            clips.setdefault(variant, made)
    if not results:
        print(f"error: {options.out} holds no trained variant of {list(study.variants)}: add --train", file=sys.stderr)
        return 2
    text = report(study, results)
    print(text)
    (options.out / "table.md").write_text(text, "utf-8")
    (options.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    draw(cases[:SHOWN], clips, options.out / "sheet.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
