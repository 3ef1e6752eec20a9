"""Measure clips of a folder, as the node Evaluate Clips does, one clip at a time.

python dev.py run -m magdiff_core.metrics MADE [--prompts FILE.csv --clip FILE] [--sources DIR --edit-masks DIR] \\
    [--subjects DIR --dino FILE] [--real DIR --i3d FILE] [--c3d FILE] [--frames 16] [--out DIR]

A clip is a video file, or a folder of pictures; what belongs to it has its name. Writes results.json, results.txt and plot.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

DIRECTORIES = {
    "sources": "clips before the edit, for the PSNR",
    "edit-masks": "masks, white = may change",
    "keep-masks": "masks, white = kept",
    "subjects": "pictures of the given subjects, for the DINO score",
    "subject-masks": "masks of the subjects in the made clips",
}
MODEL_FILES = {"clip": "whole CLIP", "dino": "DINO ViT-S/16", "i3d": "I3D, for FVD", "c3d": "C3D, for the video Inception Score"}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that name model files, for this command and the benchmarks."""
    for name, text in MODEL_FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--allow-torchscript", action="store_true", help="--i3d and --c3d may be TorchScript, which runs code of its own"
    )
    parser.add_argument("--device", help="where networks compute: cpu, cuda, ...; a GPU where there is one by default")


def load_chosen(options: Mapping):
    """The models that the options of `add_model_options` name. Raises ValueError for a file that is none."""
    import torch

    from ..host.clip_tokens import tokenize
    from . import load
    from .evaluation import Models

    device = torch.device(options["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))

    def place(module: torch.nn.Module) -> torch.device:
        module.to(device)
        return device

    allow = options["allow_torchscript"]
    return Models(
        clip=load.load_clip(options["clip"], tokenize, place) if options["clip"] else None,
        dino=load.load_dino(options["dino"], place) if options["dino"] else None,
        i3d=load.load_i3d(options["i3d"], allow, place) if options["i3d"] else None,
        c3d=load.load_c3d(options["c3d"], allow, place) if options["c3d"] else None,
    )


def write_results(evaluation, folder: Path) -> str:
    """Writes results.json, results.txt and plot.png, and gives the text."""
    from PIL import Image

    from .plot import draw_plot
    from .report import as_json, as_text

    folder.mkdir(parents=True, exist_ok=True)
    text = as_text(evaluation)
    (folder / "results.json").write_text(as_json(evaluation) + "\n", "utf-8")
    (folder / "results.txt").write_text(text + "\n", "utf-8")
    Image.fromarray((draw_plot(evaluation)[0].numpy() * 255).round().astype("uint8")).save(folder / "plot.png")
    return text


def show_progress(done: int, total: int, name: str) -> None:
    """A bar on the terminal; one line at the end where there is none."""
    if sys.stderr.isatty() or done == total:
        filled = 30 * done // max(total, 1)
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done} of {total} clips {name[:30]:<30}{end}")
        sys.stderr.flush()


def measure_folder(options: Mapping, progress: Callable[[int, int, str], None] = show_progress):
    """The evaluation that the command's options ask for.

    Raises:
        ValueError: files that are missing, cannot be read, or do not fit each other.
    """
    from .clip_files import check_names, find_clips, read_clip, read_mask, read_prompts
    from .evaluation import Evaluator
    from .inputs import MeasuredClip

    made = find_clips(options["made"])
    others = {name: find_clips(options[name]) for name in (key.replace("-", "_") for key in DIRECTORIES) if options[name]}
    prompts = read_prompts(options["prompts"]) if options["prompts"] else {}
    for name, entries in others.items():
        check_names(made, entries, f"--{name.replace('_', '-')}")
    if prompts:
        check_names(made, prompts, "--prompts")
    real = find_clips(options["real"]) if options["real"] else {}
    frames = options["frames"]
    evaluator = Evaluator(load_chosen(options))
    total, done = len(made) + len(real), 0
    for name, path in made.items():
        evaluator.add(
            MeasuredClip(
                read_clip(path, frames),
                prompts.get(name, ""),
                source_frames=read_clip(others["sources"][name], frames) if "sources" in others else None,
                edit_mask=read_mask(others["edit_masks"][name], frames) if "edit_masks" in others else None,
                keep_mask=read_mask(others["keep_masks"][name], frames) if "keep_masks" in others else None,
                subject=read_clip(others["subjects"][name]) if "subjects" in others else None,
                subject_mask=read_mask(others["subject_masks"][name], frames) if "subject_masks" in others else None,
            )
        )
        done += 1
        progress(done, total, name)
    for name, path in real.items():
        evaluator.add_real(read_clip(path, frames, options["stride"]))
        done += 1
        progress(done, total, name)
    return evaluator.finish()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m magdiff_core.metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("made", type=Path, help="folder of the clips to measure")
    parser.add_argument("--real", type=Path, metavar="DIR", help="real clips, for FVD")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="CSV with the columns clip and prompt, or a folder of .txt")
    for name, text in DIRECTORIES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)
    add_model_options(parser)
    parser.add_argument("--frames", type=int, help="use the first so many frames of each clip")
    parser.add_argument("--stride", type=int, default=1, help="use every so many-th frame of the real clips (default 1)")
    parser.add_argument("--out", type=Path, default=Path("output/metrics"), help="folder for the results")
    options = vars(parser.parse_args(arguments))
    for name in ("frames", "stride"):
        if options[name] is not None and options[name] < 1:
            parser.error(f"--{name} is {options[name]}: at least 1 is needed")
    try:
        text = write_results(measure_folder(options), options["out"])
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n\nresults.json, results.txt and plot.png are in {options['out'].resolve()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
