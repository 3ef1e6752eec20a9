"""The clips that are left, as the folder and the table that the trainer reads, and the table of what was dropped and why."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...train.checkpoint import write_atomically
from ..video_clips import MASK_SUFFIX
from .chart import draw_statistics
from .figures import Figures, figures_of
from .frames import MASK_FILE
from .records import STAGES, Records
from .shards import open_shards

CLIPS = "clips"


def collect(work: Path, shards: Sequence[Path], out: Path) -> int:
    """Writes the shards' clips to `out/clips/<shard>/`: video, caption with label, mask. Gives how many were written now.

    The caption comes last, so a clip that was cut off is not read by the trainer and is written again.
    """
    records = Records(work, STAGES[-1])
    written = 0
    for shard in open_shards(shards, []):
        for clip in records.clips(shard.name):
            record = records.read(shard.name, clip)
            text = out / CLIPS / shard.name / f"{clip}.txt"
            if "dropped" in record or text.is_file():
                continue
            with tempfile.TemporaryDirectory() as folder:
                packed = shard.take_out(clip, Path(folder))
                followed = records.file(shard.name, clip, MASK_FILE)
                mask = followed if followed.is_file() else packed.subject_mask
                _copy(packed.video, text.with_suffix(packed.video.suffix))
                _copy(mask, text.with_name(f"{clip}{MASK_SUFFIX}{mask.suffix.lower()}"))
            _write(text, record["caption_with_label"] + "\n")
            written += 1
    return written


def report(work: Path, shards: Sequence[Path], out: Path) -> Figures:
    """Writes `clips.csv` (read by the trainer), `dropped.csv`, `statistics.json`, `statistics.png` and `report.md` to `out`.

    What is not finished yet is counted, not an error, so it can be asked for at any time.
    """
    records = Records(work, STAGES[-1])
    kept, dropped, unfinished = [], [], 0
    damaged: list[str] = []
    for shard in open_shards(shards, damaged):
        for clip in shard.clips:
            record = _last_record(work, shard.name, clip)
            facts = {"shard": shard.name, "clip": clip} | (record or {})
            if record and "dropped" in record:
                dropped.append(facts | record["dropped"])
            elif record is None or not records.has(shard.name, clip):
                unfinished += 1
            else:
                kept.append(facts)
    ready = []
    for facts in kept:
        files = sorted((out / CLIPS / facts["shard"]).glob(f"{facts['clip']}.*"))
        video = next((file for file in files if file.suffix != ".txt" and file.stem == facts["clip"]), None)
        mask = next((file for file in files if file.stem == facts["clip"] + MASK_SUFFIX), None)
        if video and mask and (out / CLIPS / facts["shard"] / f"{facts['clip']}.txt").is_file():
            places = {"video": video.relative_to(out).as_posix(), "mask": mask.relative_to(out).as_posix()}
            ready.append(facts | places | {"caption": facts["caption_with_label"]})
    columns = ("video", "caption", "mask", "label", "category", "seconds", "area", "source")
    _write(out / "clips.csv", _table(ready, columns))
    _write(out / "dropped.csv", _table(dropped, ("source", "shard", "clip", "stage", "rule", "why")))
    figures = figures_of(kept, dropped, unfinished, len(ready), damaged)
    _write(out / "statistics.json", json.dumps(figures.as_json(), indent=2, ensure_ascii=False) + "\n")
    _write(out / "report.md", figures.as_text())
    picture = draw_statistics(figures)
    write_atomically(out / "statistics.png", lambda path: picture.save(path, format="PNG"))
    return figures


def _last_record(work: Path, shard: str, clip: str) -> dict | None:
    for stage in reversed(STAGES):
        records = Records(work, stage)
        if records.has(shard, clip):
            return records.read(shard, clip)
    return None


def _table(rows: Iterable[dict], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda path: path.write_bytes(source.read_bytes()))


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda path: path.write_text(text, "utf-8"))
