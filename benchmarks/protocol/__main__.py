"""The tables of the MagDiff paper on your own copies of the data, with your own models.

python dev.py run -m benchmarks.protocol {ucf101,msrvtt,dreambooth,davis} --root DIR --checkpoint NAME --adapter NAME \\
    --clip FILE --dino FILE --i3d FILE --c3d FILE [--clips N] [--out DIR]

Makes the clips that --out lacks (so a run that was stopped goes on), then measures all. --made DIR measures clips of another
method instead: folders of pictures or videos with the names that this command uses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from magdiff_core.metrics.__main__ import add_model_options, load_chosen, show_progress, write_results
from magdiff_core.metrics.clip_files import check_names, find_clips, read_clip, read_mask
from magdiff_core.metrics.evaluation import METRICS, Evaluation, Evaluator, Models
from magdiff_core.metrics.inputs import MeasuredClip
from magdiff_core.segment.track import follow

from . import make
from .cases import EDIT, FRAMES, TABLES, Case, DataError, Table, fit, real_clip, source_frames, subject_mask

HUNDREDFOLD = ("dino_score", "textual_alignment", "consistency_all_pairs")
"""Metrics that the paper prints times 100."""


def measure(
    cases: list[Case], clips: dict[str, Path], models: Models, options: argparse.Namespace, table: Table, progress
) -> Evaluation:
    """The table's metrics of the made clips, of which the middle square counts, as it does of the data.

    The given subject is the source on black; in a made clip it is found by following the given mask from the first frame on, or
    by --subject-masks.
    """
    marks = find_clips(options.subject_masks) if options.subject_masks else {}
    wants_subject = models.dino is not None and "dino_score" in table.paper
    wants_real = models.i3d is not None and "fvd" in table.paper
    models = Models(
        clip=models.clip,
        dino=models.dino if wants_subject else None,
        i3d=models.i3d if wants_real else None,
        c3d=models.c3d if "video_is" in table.paper else None,
    )
    evaluator = Evaluator(models)
    for number, case in enumerate(cases):
        frames = read_clip(clips[case.name], options.frames)
        frames = fit(frames, min(frames.shape[1:3]))
        subject = found = None
        if wants_subject:
            subject, found = _subjects(case, frames, marks.get(case.name))
        evaluator.add(MeasuredClip(frames, case.prompt, subject=subject, subject_mask=found))
        if wants_real and case.has_real:
            evaluator.add_real(real_clip(case, options.frames, options.stride, frames.shape[1]))
        progress(number + 1, len(cases), case.name)
    return evaluator.finish()


def _subjects(case: Case, frames: Tensor, marks: Path | None) -> tuple[Tensor, Tensor | None]:
    """The given subject `[1 or F, h, w, 3]` on black, and its mask in the made clip, None for whole frames."""
    size = frames.shape[1]
    given, mask = source_frames(case, size), subject_mask(case, size)
    subject = given if mask is None else given * mask[..., None]
    if marks is not None:
        found = read_mask(marks, len(frames))
        return subject, fit(found[..., None].expand(-1, -1, -1, 3), size)[..., 0]
    if mask is None:
        return subject, None
    if case.mode == EDIT:
        return subject, mask
    return subject, follow(frames, {0: mask[0]}).subject_mask


def comparison(evaluation: Evaluation, table: Table) -> str:
    """Our values beside those of the paper."""
    lines = [f"{table.title}, {len(evaluation.sizes)} clips", f"{'':<42}{'here':>9}{'paper':>9}"]
    for name, paper in table.paper.items():
        value = evaluation.value.get(name)
        shown = "-" if value is None else f"{value * (100 if name in HUNDREDFOLD else 1):.2f}"
        lines.append(f"{METRICS[name].title:<42}{shown:>9}{paper:>9.2f}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.protocol", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--out", type=Path, help="folder for clips and results (output/protocol/<table> by default)")
    parser.add_argument("--clips", type=int, help="number of clips; the paper's by default")
    parser.add_argument("--made", type=Path, metavar="DIR", help="measure these clips, make none")
    parser.add_argument("--subject-masks", type=Path, metavar="DIR", help="masks of the subjects in the made clips")
    parser.add_argument("--checkpoint", help="as Load MagDiff Checkpoint lists it")
    parser.add_argument("--adapter", help="as Apply MagDiff Adapter lists it")
    parser.add_argument("--clip-vision", help="as Load CLIP Vision lists it, where the checkpoint has none")
    parser.add_argument("--base", type=Path, help="ComfyUI's base directory, where models is")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames a clip (default 8)")
    parser.add_argument("--stride", type=int, default=4, help="take every so many-th frame of real videos (default 4)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0, help="draws videos, captions and noise")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    for name in ("clips", "frames", "stride", "steps", "size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: at least 1 is needed")
    if options.made is None and options.checkpoint is None:
        parser.error("name the model with --checkpoint (and --adapter), or clips that are made already with --made")
    if options.table == "davis" and options.frames != FRAMES:
        parser.error(f"--frames is {options.frames}: DAVIS is edited in {FRAMES} frames")
    if not any((options.clip, options.dino, options.i3d, options.c3d)):
        parser.error("name at least one model file to measure with: --clip, --dino, --i3d or --c3d")
    options.out = options.out or Path("output/protocol") / options.table
    return options


def run(options: argparse.Namespace, progress=show_progress) -> str:
    """Makes and measures; gives the comparison as text. Raises DataError or ValueError for what the user can act on."""
    table = TABLES[options.table]
    count = table.count if options.clips is None else options.clips
    cases = table.read(options.root, count, options.seed)
    # Before hours of work: a model file that cannot be read.
    models = load_chosen(vars(options))
    folder = options.made
    if folder is None:
        settings = make.Settings(
            options.checkpoint, options.adapter, options.clip_vision, options.size, options.frames, options.steps, options.cfg,
            options.seed,
        )  # fmt: skip
        make.make_all(cases, settings, options.out, options.base, progress)
        folder = options.out / "made"
    clips = find_clips(folder)
    check_names({case.name: case for case in cases}, clips, str(folder))
    evaluation = measure(cases, clips, models, options, table, progress)
    whole = sum(not case.masks for case in cases)
    if whole:
        evaluation.notes.append(f"{whole} of {len(cases)} clips have no subject mask: the whole frame is their subject.")
    if count and len(cases) < count:
        evaluation.warnings.append(f"the data set has {len(cases)} clips, the table asks for {count}")
    text = f"{comparison(evaluation, table)}\n\n{write_results(evaluation, options.out)}"
    (options.out / "results.txt").write_text(text + "\n", "utf-8")
    return text


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.manual_seed(options.seed)
    try:
        text = run(options)
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{text}\n\nresults.json, results.txt and plot.png are in {options.out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
