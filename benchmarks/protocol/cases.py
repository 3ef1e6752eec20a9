"""Which clips a table asks for: source, prompt and subject mask of each, from the user's copy of a data set.

Section 4.1 and supplement D of the MagDiff paper: the subject is cut out of the first frame (of the picture for DreamBooth, of each
of eight frames for DAVIS); a clip without a subject mask takes the whole frame for the subject. What the paper leaves open is
said where it is decided.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magdiff_core.metrics import pictures
from magdiff_core.metrics.clip_files import PICTURES, VIDEOS, natural, pictures_of, read_clip

FRAMES = 8
GENERATE, EDIT = "generate", "edit"


class DataError(Exception):
    """Something about the data set that the user can act on."""


@dataclass(frozen=True)
class Case:
    """A clip to make. source: video or picture (generate), or the chosen pictures of a clip (edit). masks: none (the whole frame is
    the subject), one, or one a picture. has_real: the source is a clip that FVD may compare with."""

    name: str
    prompt: str
    source: tuple[Path, ...]
    masks: tuple[Path, ...]
    mode: str
    has_real: bool


@dataclass(frozen=True)
class Table:
    """title: of the data set. read: (root, count, seed) -> cases. count: clips of the paper, 0 for all. paper: MagDiff's row by
    metric, in the paper's units."""

    title: str
    read: Callable[[Path, int, int], list[Case]]
    count: int
    paper: dict[str, float]


def _need(path: Path, what: str) -> Path:
    if not path.exists():
        raise DataError(f"{path} is missing: {what}")
    return path


def _mask_of(root: Path, name: str) -> tuple[Path, ...]:
    found = [path for path in (root / "masks" / f"{name}{suffix}" for suffix in PICTURES) if path.is_file()]
    return tuple(found[:1])


def read_prompt_table(path: Path) -> dict[str, str]:
    """Prompts by name from a CSV with the columns name and prompt."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "prompt"} <= rows[0].keys():
        raise DataError(f"{path} must have the columns name and prompt and at least one row")
    return {row["name"]: row["prompt"] for row in rows}


def class_words(name: str) -> str:
    """ "ApplyEyeMakeup" -> "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|\d+|[a-z]+", name)).lower()


def _evenly(groups: Iterable[list], count: int, seed: int) -> list:
    """`count` entries, as equally many of each group as there are; all for 0."""
    generator = random.Random(seed)
    waiting = [generator.sample(group, len(group)) for group in groups]
    if not count:
        count = sum(map(len, waiting))
    chosen: list = []
    while len(chosen) < count and any(waiting):
        for group in waiting:
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return chosen


def ucf101(root: Path, count: int, seed: int) -> list[Case]:
    """`UCF-101/<Class>/*.avi`; masks of first frames in `masks/<video>.png`; `prompts.csv` (name = class) replaces class names.

    The paper names 10,000 test videos and "brief class names": videos are drawn evenly over the classes, by seed.
    """
    folder = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != "masks"] if folder.is_dir() else []
    groups = [sorted(path for path in group.iterdir() if path.suffix.lower() in VIDEOS) for group in classes]
    if not any(groups):
        raise DataError(f"{root} holds no UCF-101/<Class>/<video>.avi")
    told = read_prompt_table(root / "prompts.csv") if (root / "prompts.csv").is_file() else {}
    return [
        Case(
            video.stem,
            told.get(video.parent.name, class_words(video.parent.name)),
            (video,),
            _mask_of(root, video.stem),
            GENERATE,
            True,
        )
        for video in sorted(_evenly(groups, count, seed))
    ]


def msrvtt(root: Path, count: int, seed: int) -> list[Case]:
    """`*videodatainfo*.json` with videos and sentences, the videos of the split "test" anywhere below; masks as for UCF-101.

    The paper says nothing of which of 20 captions: one is drawn for each video, by seed.
    """
    files = sorted(root.glob("*videodatainfo*.json")) + sorted(root.glob("*/*videodatainfo*.json"))
    if not files:
        raise DataError(f"{root} holds no test_videodatainfo.json, which has MSR-VTT's captions")
    captions: dict[str, list[str]] = {}
    wanted: set[str] = set()
    for file in files:
        document = json.loads(file.read_text("utf-8"))
        wanted |= {video["video_id"] for video in document["videos"] if video.get("split", "test") == "test"}
        for sentence in document["sentences"]:
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    found = {path.stem: path for path in root.rglob("*") if path.suffix.lower() in VIDEOS}
    missing = sorted((name for name in wanted if name not in found or name not in captions), key=natural)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} test videos of {files[0].name} have no file or caption: {missing[:3]} ..."
        )
    names = sorted(_evenly([sorted(wanted)], count, seed), key=natural)
    return [
        Case(name, random.Random(f"{seed} {name}").choice(captions[name]), (found[name],), _mask_of(root, name), GENERATE, True)
        for name in names
    ]


def dreambooth(root: Path, count: int, seed: int) -> list[Case]:
    """`<subject>/*.jpg` (also below `dataset`) and `prompts_and_classes.txt`, as published; masks in `masks/<subject>.png`.

    Each subject's first picture with each of its 25 prompts, without the rare word that stands for the subject in DreamBooth:
    here the picture does.
    """
    folder = root / "dataset" if (root / "dataset").is_dir() else root
    text = _need(folder / "prompts_and_classes.txt", "it comes with DreamBooth's data set").read_text("utf-8")
    classes, prompts = parse_dreambooth(text)
    groups = []
    for subject, (kind, is_live) in sorted(classes.items()):
        files = pictures_of(_need(folder / subject, f"prompts_and_classes.txt names the subject {subject}"))
        if not files:
            raise DataError(f"{folder / subject} holds no picture")
        mask = _mask_of(root, subject)
        groups.append(
            [
                Case(f"{subject}_{number:02}", prompt.format(kind), (files[0],), mask, GENERATE, False)
                for number, prompt in enumerate(prompts[is_live])
            ]
        )
    return sorted(_evenly(groups, count, seed), key=lambda case: case.name)


def parse_dreambooth(text: str) -> tuple[dict[str, tuple[str, bool]], dict[bool, list[str]]]:
    """Class and "is it alive" by subject, and the prompts of live subjects (True) and objects (False) with `{}` for the class."""
    prompts: dict[bool, list[str]] = {True: [], False: []}
    classes: dict[str, str] = {}
    live = False
    for line in text.splitlines():
        line = line.strip()
        if "prompts" in line.lower() and "format" not in line:
            live = "live" in line.lower()
        elif found := re.match(r"""['"](.*)['"]\s*\.format\(""", line):
            prompts[live].append(re.sub(r"\{0\}\s*\{1\}", "{}", found[1]))
        elif (found := re.fullmatch(r"([\w-]+),\s*([\w -]+)", line)) and found[1] != "subject_name":
            classes[found[1]] = found[2]
    if not classes or not all(prompts.values()):
        raise DataError("prompts_and_classes.txt holds no classes or no prompts for objects and live subjects")
    return {subject: (kind, kind in LIVE_CLASSES) for subject, kind in classes.items()}, prompts


LIVE_CLASSES = ("dog", "cat")
"""Classes of DreamBooth's data set that get the prompts for live subjects."""


def davis(root: Path, count: int, seed: int) -> list[Case]:
    """`JPEGImages/480p`, `Annotations/480p`, `prompts.csv` (name = sequence); only `ImageSets/2017/val.txt` where it is there.

    DAVIS has no prompts, and the paper does not print its own: the user writes them. Eight frames are taken evenly.
    """
    prompts = read_prompt_table(_need(root / "prompts.csv", "DAVIS has no prompts: write one for each sequence (name,prompt)"))
    frames = _need(root / "JPEGImages" / "480p", "unpack DAVIS 480p here")
    masks = _need(root / "Annotations" / "480p", "unpack DAVIS 480p here")
    listed = root / "ImageSets" / "2017" / "val.txt"
    names = (
        listed.read_text("utf-8").split() if listed.is_file() else sorted(path.name for path in frames.iterdir() if path.is_dir())
    )
    names = [name for name in names if name in prompts]
    if not names:
        raise DataError("prompts.csv names none of the sequences")
    cases = []
    for name in sorted(_evenly([names], count, seed)):
        files, marks = (
            pictures_of(_need(frames / name, "prompts.csv or val.txt names it")),
            {m.stem: m for m in pictures_of(masks / name)},
        )
        if len(files) < FRAMES:
            raise DataError(f"{frames / name} has {len(files)} pictures, {FRAMES} are taken")
        chosen = [files[round(number * (len(files) - 1) / (FRAMES - 1))] for number in range(FRAMES)]
        lacking = [file.name for file in chosen if file.stem not in marks]
        if lacking:
            raise DataError(f"{masks / name} has no mask for {lacking[0]}")
        cases.append(Case(name, prompts[name], tuple(chosen), tuple(marks[file.stem] for file in chosen), EDIT, False))
    return cases


TABLES = {
    "ucf101": Table(
        "UCF-101", ucf101, 10_000,
        {"video_is": 48.57, "fvd": 339.62, "dino_score": 50.8, "textual_alignment": 25.4, "consistency_all_pairs": 90.2},
    ),
    "msrvtt": Table(
        "MSR-VTT", msrvtt, 2_990,
        {"fvd": 245.0, "dino_score": 50.2, "textual_alignment": 23.2, "consistency_all_pairs": 88.4},
    ),
    "dreambooth": Table(
        "DreamBooth", dreambooth, 0, {"dino_score": 61.4, "textual_alignment": 25.4, "consistency_all_pairs": 92.2}
    ),
    "davis": Table("DAVIS", davis, 0, {"textual_alignment": 27.65, "consistency_all_pairs": 90.86}),
}  # fmt: skip
"""Rows "MagDiff (Ours)" of the paper's Tables 1 to 3."""


# -- pixels


def fit(frames: Tensor, size: int) -> Tensor:
    """The middle square of `[F, H, W, 3]` at `size` pixels."""
    return pictures.centre(pictures.short_side_to(frames, size), size)


def source_frames(case: Case, size: int) -> Tensor:
    """What the model is given: the first frame or picture `[1, size, size, 3]`, or all frames of an edit."""
    if case.mode == GENERATE:
        return fit(read_clip(case.source[0], 1), size)
    return torch.cat([fit(read_clip(path), size) for path in case.source])


def subject_mask(case: Case, size: int) -> Tensor | None:
    """1 = subject, `[1 or F, size, size]`; None where the whole frame is the subject, as for masks that are empty."""
    if not case.masks:
        return None
    masks = torch.cat([_read_marks(path, size) for path in case.masks])
    return masks if masks.max() > 0.5 else None


def _read_marks(path: Path, size: int) -> Tensor:
    # DAVIS numbers its objects 1, 2, ... with a palette: all of them are subject.
    with Image.open(path) as picture:
        numbers = np.asarray(picture if picture.mode in ("P", "L", "1", "I;16") else picture.convert("L"))
    marked = torch.from_numpy((numbers > (127 if picture.mode in ("L", "RGB", "RGBA") else 0)).astype(np.float32))
    return (fit(marked[None, ..., None].expand(-1, -1, -1, 3), size)[..., 0] > 0.5).float()


def real_clip(case: Case, frames: int, stride: int, size: int) -> Tensor:
    """The first frames of the source, every `stride`-th; a short video is taken more closely."""
    for step in range(stride, 0, -1):
        try:
            return fit(read_clip(case.source[0], frames, step), size)
        except ValueError:
            if step == 1:
                raise
    raise AssertionError("stride is at least 1")
