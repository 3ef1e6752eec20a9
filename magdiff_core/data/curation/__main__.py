"""`python -m magdiff_core.data.curation`: raw videos to clips for the trainer, see docs/curation.md."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from .filters import LEAST_AREA, MOST_AREA, SHORT_SIDE
from .records import STAGES, Records, identity
from .shards import Part, find_shards

logger = logging.getLogger("magdiff")
PRECISIONS = ("float32", "float16", "bfloat16")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m magdiff_core.data.curation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--work", type=Path, required=True, help="folder for shards and for what the stages find out")
        made.add_argument("--shards", type=Path, help="folder of .tar files, WORK/shards by default")
        if name != "report":
            made.add_argument("--shard", metavar="i/n", help="do every n-th shard from the i-th on, for many machines; i from 0")
        return made

    def model_options(made: argparse.ArgumentParser) -> None:
        made.add_argument("--device", help="cuda where there is one, else cpu")
        made.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the models")

    pack = command("pack", "videos of a folder or a CSV to .tar files")
    pack.add_argument("--data", type=Path, required=True, help="folder of videos, or a CSV with the columns video, caption, mask")
    pack.add_argument("--per-shard", type=int, default=64, help="clips of a .tar file")
    describe = command("describe", "caption, and what is in the foreground, by BLIP-2")
    describe.add_argument("--blip2", type=Path, required=True, help="folder of a BLIP-2 model")
    describe.add_argument("--caption", choices=("given", "blip2"), default="given", help="given: BLIP-2 writes the missing ones")
    describe.add_argument("--batch", type=int, default=8, help="pictures at once")
    describe.add_argument("--short-side", type=int, default=SHORT_SIDE, help="pixels that the shorter side must have")
    model_options(describe)
    label = command("label", "nouns of the caption, and the subject's label by Algorithm 1")
    label.add_argument("--spacy", type=Path, required=True, help="folder of a spaCy pipeline with word vectors")
    label.add_argument("--theta", type=float, default=0.5, help="how like a listed word BLIP-2's answer must be, 0..1")
    label.add_argument("--subjects", type=Path, help="the subject-aware list: lines `category: word, word`")
    label.add_argument("--meaningless", type=Path, help="words that name nothing, by lines or commas")
    masks = command("masks", "the subject's mask in every frame")
    masks.add_argument("--follow", choices=("sam2", "tracker", "given"), default="sam2",
                       help="sam2: SAM 2; tracker: this pack's own; given: only masks that the clips bring")  # fmt: skip
    masks.add_argument("--sam2", type=Path, help="folder of a SAM 2 model")
    masks.add_argument("--grounding", type=Path, help="folder of a Grounding DINO model, for clips without masks")
    masks.add_argument("--box-score", type=float, default=0.35, help="how sure a box must be, 0..1")
    masks.add_argument("--side", type=int, default=1024, help="longest side of the masks in pixels")
    masks.add_argument("--area", type=float, nargs=2, default=(LEAST_AREA, MOST_AREA), metavar=("LEAST", "MOST"),
                       help="share of the picture that the subject must cover")  # fmt: skip
    model_options(masks)
    for name, text in (("collect", "write the clips that are left"), ("report", "write tables and statistics")):
        command(name, text).add_argument("--out", type=Path, required=True, help="folder for the trainer's --data")
    return parser


def _place(options: argparse.Namespace):
    import torch

    from .pretrained import PRECISIONS as DTYPES
    from .pretrained import Place

    device = options.device
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return Place(torch.device(device), DTYPES[options.precision])


def _say(tally) -> None:
    logger.info("%d clips done, %d of them dropped", tally.done, tally.dropped)
    if tally.damaged:
        raise SystemExit("\n".join(["shards that could not be read:", *tally.damaged]))


def _pack(options: argparse.Namespace, part: Part, folder: Path) -> None:
    from .shards import pack
    from .sources import list_sources

    if options.per_shard < 1:
        raise ValueError(f"--per-shard {options.per_shard}: a shard holds at least one clip")
    sources, problems = list_sources(options.data)
    for problem in problems:
        logger.warning("%s", problem)
    shards = pack(sources, folder, options.per_shard, part)
    logger.info("%d videos; %d shards are in %s", len(sources), len(shards), folder)


def _describe(options: argparse.Namespace, shards: list[Path]) -> None:
    from . import stages
    from .blip2 import Blip2

    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: at least one picture goes at once")
    records = Records(options.work, "describe")
    records.start({"blip2": identity(options.blip2), "caption": options.caption, "short_side": options.short_side})
    blip2 = Blip2(options.blip2, _place(options))
    _say(stages.describe(records, shards, blip2, options.caption, options.batch, options.short_side))


def _label(options: argparse.Namespace, shards: list[Path]) -> None:
    from . import stages
    from .subjects import MEANINGLESS, SUBJECTS, read_subjects, read_words
    from .words import Words

    subjects = read_subjects(options.subjects) if options.subjects else SUBJECTS
    meaningless = read_words(options.meaningless) if options.meaningless else MEANINGLESS
    records = Records(options.work, "label")
    settings = {"spacy": identity(options.spacy), "theta": options.theta, "subjects": subjects, "meaningless": sorted(meaningless)}
    records.start(settings)
    _say(stages.label(records, shards, Words(options.spacy), stages.LabelRules(subjects, options.theta, meaningless)))


def _masks(options: argparse.Namespace, shards: list[Path]) -> None:
    from . import stages

    if options.follow == "sam2" and options.sam2 is None:
        raise ValueError("--follow sam2 needs --sam2 FOLDER; --follow tracker needs no model")
    records = Records(options.work, "masks")
    used = {"sam2": options.sam2 if options.follow == "sam2" else None, "grounding": options.grounding}
    identities = {name: identity(folder) if folder else None for name, folder in used.items()}
    settings = {"follow": options.follow, "box_score": options.box_score, "side": options.side, "area": list(options.area)}
    records.start(settings | identities)
    follower = grounding = None
    if options.follow == "sam2":
        from .sam2 import Sam2

        follower = Sam2(options.sam2, _place(options))
    elif options.follow == "tracker":
        from .follow import Tracker

        follower = Tracker()
    if options.grounding:
        from .grounding import Grounding

        grounding = Grounding(options.grounding, _place(options), options.box_score)
    _say(stages.masks(records, shards, follower, grounding, stages.MaskRules(options.side, *options.area)))


def _run(options: argparse.Namespace) -> None:
    folder = options.shards or options.work / "shards"
    part = Part.parse(options.shard) if options.command != "report" else Part()
    if options.command == "pack":
        _pack(options, part, folder)
        return
    shards = find_shards(folder, part)
    if options.command == "describe":
        _describe(options, shards)
    elif options.command == "label":
        _label(options, shards)
    elif options.command == "masks":
        _masks(options, shards)
    elif options.command == "collect":
        from .collect import collect

        Records(options.work, STAGES[-1]).settings()
        logger.info("%d clips written to %s", collect(options.work, shards, options.out), options.out)
    else:
        from .collect import report

        logger.info("%s", report(options.work, shards, options.out).as_text())


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage; what stops it is said in words, with exit status 1."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        _run(options)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
