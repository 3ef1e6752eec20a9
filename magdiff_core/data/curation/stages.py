"""The stages, each over the clips of some shards; what has a record already is not done again."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from ...train.checkpoint import write_atomically
from ..video_frames import PICTURES, BadVideo
from . import filters
from .blip2 import Blip2
from .filters import Dropped
from .follow import Follower, Start
from .frames import MASK_FILE, probe, read_masks, stream_frames, write_masks
from .grounding import Grounding
from .records import Records, earlier_stage
from .selection import category_of, select_label
from .shards import PackedClip, Shard, open_shards
from .subjects import MEANINGLESS, SUBJECTS
from .words import Words, tidy_answer

logger = logging.getLogger("magdiff")

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Tally:
    """What a run of a stage did: clips done now, dropped now, and shards that could not be opened."""

    done: int = 0
    dropped: int = 0
    damaged: tuple[str, ...] = ()


def _dropped(stage: str, problem: Dropped | BadVideo) -> dict:
    rule = problem.rule if isinstance(problem, Dropped) else UNREADABLE
    return {"dropped": {"stage": stage, "rule": rule, "why": str(problem)}}


@dataclass
class _Count:
    done: int = 0
    dropped: int = 0

    def add(self, record: dict) -> None:
        self.done += 1
        self.dropped += "dropped" in record


def _over_shards(records: Records, shards: Sequence[Path], work_on: Callable[[Shard, _Count], None]) -> Tally:
    count = _Count()
    damaged: list[str] = []
    for shard in open_shards(shards, damaged):
        before = count.done
        work_on(shard, count)
        logger.info("%s, %s (%d of %d): %d clips", records.stage, shard.name, shards.index(shard.path) + 1, len(shards),
                    count.done - before)  # fmt: skip
    return Tally(count.done, count.dropped, tuple(damaged))


def describe(
    records: Records,
    shards: Sequence[Path],
    blip2: Blip2,
    caption: str = "given",
    batch: int = 8,
    short_side: int = filters.SHORT_SIDE,
) -> Tally:
    """Size and length, a caption where there is none ("given") or everywhere ("blip2"), and BLIP-2's answer to what is in front.

    Drops what cannot be read and what is too small (rule 1), before any model sees it.
    """

    def readable(shard: Shard, count: _Count) -> Iterator[tuple[str, dict, object]]:
        for clip in shard.clips:
            if records.has(shard.name, clip):
                continue
            record = {"source": clip}
            try:
                with tempfile.TemporaryDirectory() as folder:
                    packed = shard.take_out(clip, Path(folder))
                    record = {"source": packed.source, "caption": packed.caption}
                    facts, picture = probe(packed.video)
                record |= {"width": facts.width, "height": facts.height, "frames": facts.frames, "rate": str(facts.rate)}
                record["seconds"] = round(facts.seconds, 3)
                filters.check_short_side(facts.width, facts.height, short_side)
            except (Dropped, BadVideo) as problem:
                record |= _dropped("describe", problem)
                records.write(shard.name, clip, record)
                count.add(record)
            else:
                yield clip, record, picture

    def work_on(shard: Shard, count: _Count) -> None:
        waiting = readable(shard, count)
        while jobs := list(islice(waiting, batch)):
            pictures = [picture for _, _, picture in jobs]
            answers = blip2.answers(pictures)
            unnamed = [place for place, (_, record, _) in enumerate(jobs) if caption == "blip2" or not record["caption"]]
            written = dict(zip(unnamed, blip2.captions([pictures[place] for place in unnamed]))) if unnamed else {}
            for place, (clip, record, _) in enumerate(jobs):
                record |= {"answer": answers[place], "caption_from": "blip2" if place in written else "given"}
                if place in written:
                    record |= {"caption": written[place], "caption_given": record["caption"]}
                records.write(shard.name, clip, record)
                count.add(record)

    return _over_shards(records, shards, work_on)


@dataclass(frozen=True)
class LabelRules:
    """W by category, the threshold of Algorithm 1, and the words that name nothing."""

    subjects: dict[str, Sequence[str]] = field(default_factory=lambda: SUBJECTS)
    theta: float = 0.5
    meaningless: Collection[str] = MEANINGLESS


def label(records: Records, shards: Sequence[Path], words: Words, rules: LabelRules = LabelRules()) -> Tally:  # noqa: B008
    """Nouns of the caption, Algorithm 1, the category, and the caption with the label. Drops labels that say nothing (rule 3)."""
    earlier = Records(records.work, earlier_stage(records.stage))
    listed = [word for group in rules.subjects.values() for word in group]
    count = _Count()
    for path in shards:
        shard = path.stem
        for clip in earlier.clips(shard):
            if records.has(shard, clip):
                continue
            record = earlier.read(shard, clip)
            if "dropped" not in record:
                record |= _label_facts(record, words, rules, listed)
            records.write(shard, clip, record)
            count.add(record)
    return Tally(count.done, count.dropped)


def _label_facts(record: dict, words: Words, rules: LabelRules, listed: Sequence[str]) -> dict:
    nouns = words.nouns(record["caption"])
    answer = tidy_answer(record["answer"])
    choice = select_label(answer, listed, nouns, words.similarity, rules.theta)
    facts = {
        "nouns": nouns,
        "label": choice.label,
        "label_from": choice.source,
        "answer_score": round(choice.answer_score, 4),
        "noun_score": round(choice.noun_score, 4),
    }
    try:
        known = words.known(choice.label)
        filters.check_meaning(choice.label, words.nouns(choice.label), rules.meaningless, known)
    except Dropped as problem:
        return facts | _dropped("label", problem)
    facts["category"] = category_of(choice.label, rules.subjects, words.similarity, rules.theta)
    facts["caption_with_label"] = f"{record['caption'].rstrip(' .,;')}, {choice.label}"
    return facts


@dataclass(frozen=True)
class MaskRules:
    """Longest side of the masks in pixels, and the share of the picture that a subject must cover."""

    longest_side: int = 1024
    least_area: float = filters.LEAST_AREA
    most_area: float = filters.MOST_AREA


def masks(
    records: Records,
    shards: Sequence[Path],
    follower: Follower | None,
    grounding: Grounding | None,
    rules: MaskRules = MaskRules(),  # noqa: B008
) -> Tally:
    """Masks of every frame: the given ones, or followed from a given first one or from boxes around what the label names.

    Without a follower a given mask of the first frame stays alone. Drops what is not found, and subjects that are too small or
    too large (rule 2).

    Raises ValueError when a clip has no mask of its own and there is no way to find one.
    """
    earlier = Records(records.work, earlier_stage(records.stage))

    def work_on(shard: Shard, count: _Count) -> None:
        for clip in earlier.clips(shard.name):
            if records.has(shard.name, clip):
                continue
            record = earlier.read(shard.name, clip)
            if "dropped" not in record:
                if not shard.has_mask(clip) and (grounding is None or follower is None):
                    raise ValueError(
                        f"clip {clip} ({record['source']}) has no mask of its own: name --grounding, which finds the label in the "
                        "first frame, and follow it with --follow sam2 or tracker"
                    )
                target = records.file(shard.name, clip, MASK_FILE)
                try:
                    with tempfile.TemporaryDirectory() as folder:
                        packed = shard.take_out(clip, Path(folder))
                        record |= _mask_facts(packed, record, target, follower, grounding, rules)
                except (Dropped, BadVideo) as problem:
                    target.unlink(missing_ok=True)
                    record |= _dropped("masks", problem)
            records.write(shard.name, clip, record)
            count.add(record)

    return _over_shards(records, shards, work_on)


def _mask_facts(
    packed: PackedClip, record: dict, target: Path, follower: Follower | None, grounding: Grounding | None, rules: MaskRules
) -> dict:
    side = rules.longest_side
    given = packed.subject_mask
    still = given is not None and given.suffix.lower() in PICTURES
    facts = {}
    if given is not None and (follower is None or not still):
        if not still and (seconds := probe(given)[0].seconds) < record["seconds"] - 0.5:
            raise BadVideo(f"its mask lasts {seconds:.1f} s, the video {record['seconds']:.1f} s")
        shares = [float(mask.float().mean()) for mask in read_masks(given, side)]
        facts["mask_from"] = "given"
    else:
        first = next(stream_frames(packed.video, side))
        if still:
            start = Start(_given_start(given, first))
        else:
            start = Start(boxes=grounding.boxes(first, record["label"]))
            if not start.boxes:
                raise Dropped("not found", f"the label {record['label']!r} was not found in the first frame")
        facts["mask_from"] = "given first frame, followed" if still else "label"
        facts["boxes"] = [[round(edge, 1) for edge in box] for box in start.boxes]
        finished = packed.video.with_name("followed.mkv")
        shares = write_masks(finished, follower.masks(stream_frames(packed.video, side), start), Fraction(record["rate"]))
        write_atomically(target, lambda path: shutil.copyfile(finished, path))
    facts |= {"area_least": round(min(shares), 4), "area_most": round(max(shares), 4)}
    facts["area"] = round(filters.check_area(shares, rules.least_area, rules.most_area), 4)
    return facts


def _given_start(file: Path, first: Tensor) -> Tensor:
    """The given mask of the first frame, in the size of the frames that are followed."""
    (mask,) = read_masks(file)
    (height, width), (high, wide) = mask.shape, first.shape[:2]
    if abs(width * high - height * wide) > 2 * max(width, height, wide, high):
        raise BadVideo(f"its mask is {width} x {height}, the frames are {wide} x {high}: the sides need the same ratio")
    resized = interpolate(mask[None, None].float(), (high, wide), mode="bilinear", antialias=True)[0, 0] > 0.5
    if not resized.any():
        raise BadVideo("its mask is empty")
    return resized
