"""The whole curation: from videos to what the trainer reads, stopped anywhere and gone on with, split among processes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import curation_models as made
import pytest
import torch
from PIL import Image

from magdiff_core.data.curation import stages
from magdiff_core.data.curation.__main__ import main
from magdiff_core.data.curation.collect import collect, report
from magdiff_core.data.curation.frames import read_masks
from magdiff_core.data.curation.records import Records
from magdiff_core.data.curation.shards import DamagedShard, Part, Shard, find_shards, pack
from magdiff_core.data.curation.sources import list_sources
from magdiff_core.data.video_clips import Sampling, list_clips, read_clip


class Oracle:
    """Stands for BLIP-2: knows what the made-up clips show by their size."""

    def answers(self, pictures):
        return [{64: "A dog.", 80: "the view", 72: "qzx"}[picture.shape[1]] for picture in pictures]

    def captions(self, pictures):
        return ["a cat on grass" for _ in pictures]


class Eyes:
    """Stands for Grounding DINO and SAM 2: sees the bright square."""

    def boxes(self, picture, label):
        return ((8.0, 14.0, 28.0, 34.0),) if label != "cat" else ()

    def masks(self, frames, start):
        for frame in frames:
            yield frame[..., 0] > 128


class Words:
    """Stands for spaCy."""

    def nouns(self, text):
        return [word for word in text.lower().replace(".", "").split() if word in made.NOUNS]

    def known(self, text):
        return any(word in made.VECTORS for word in text.split())

    def similarity(self, one, other):
        vectors = [torch.tensor(made.VECTORS.get(word, (0, 0, 0)), dtype=torch.float64) for word in (one, other)]
        lengths = vectors[0].norm() * vectors[1].norm()
        return float(vectors[0] @ vectors[1] / lengths) if lengths else 0.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Seven videos: three good ones (one with a given first mask, one with a given mask video), four that the rules drop."""
    folder = tmp_path_factory.mktemp("videos")
    words = {"a": "A dog runs on grass.", "b": "A Dog", "sub/c": "dog", "small": "dog", "view": "a view", "tiny": "a dog"}
    for name, caption in words.items():
        size = {"small": (64, 40), "view": (80, 48)}.get(name, (64, 48))
        made.write_clip(folder / f"{name}.mkv", size=size, side=6 if name == "tiny" else 20)
        (folder / f"{name}.txt").write_text(caption)
    (folder / "broken.mp4").write_bytes(b"\0" * 500)
    # no caption: BLIP-2 says "a cat on grass", its answer is unknown, and no cat is found
    made.write_clip(folder / "mute.mkv", size=(72, 48))
    Image.fromarray(made.square(0).numpy()).save(folder / "b.mask.png")
    from magdiff_core.data.curation.frames import write_masks

    write_masks(folder / "sub" / "c.mask.mkv", [made.square(number) for number in range(12)], 8)
    return folder


def curate(videos, work, out, part=Part(), follower=None):  # noqa: B008
    """All stages with the stand-ins."""
    sources, problems = list_sources(videos)
    assert not problems
    shards = pack(sources, work / "shards", 3, part)
    for stage, settings in (("describe", {"side": 48}), ("label", {"theta": 0.5}), ("masks", {"side": 1024})):
        records = Records(work, stage)
        records.start(settings)
        if stage == "describe":
            stages.describe(records, shards, Oracle(), batch=2, short_side=48)
        elif stage == "label":
            stages.label(records, shards, Words())
        else:
            stages.masks(records, shards, follower or Eyes(), Eyes())
    collect(work, shards, out)
    return shards


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def unbroken(videos, tmp_path_factory):
    place = tmp_path_factory.mktemp("unbroken")
    shards = curate(videos, place / "work", place / "out")
    report(place / "work", shards, place / "out")
    return place


def test_what_is_left_is_what_the_trainer_reads(unbroken):
    clips, problems = list_clips(unbroken / "out" / "clips.csv")
    assert not problems and [clip.caption for clip in clips] == ["A dog runs on grass, dog", "A Dog, dog", "dog, dog"]
    from_folder, problems = list_clips(unbroken / "out" / "clips")
    assert not problems and from_folder == clips
    for start, clip in enumerate(clips):
        frames, subject = read_clip(clip, Sampling(frames=4, size=48, frame_rate=8, seed=start))
        bright = frames[:1, ..., :1] > 0.5
        assert torch.equal(subject, frames[:1] * bright)
    with open(unbroken / "out" / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["a.mkv", "b.mkv", "sub/c.mkv"]
    assert {row["category"] for row in rows} == {"animal"} and rows[0]["seconds"] == "1.5"
    assert float(rows[0]["area"]) == pytest.approx(400 / (64 * 48), abs=1e-4)


def test_every_dropped_clip_is_in_the_table_with_its_reason(unbroken):
    with open(unbroken / "out" / "dropped.csv", newline="") as file:
        rows = {row["source"]: (row["stage"], row["rule"], row["why"]) for row in csv.DictReader(file)}
    assert rows.keys() == {"broken.mp4", "mute.mkv", "small.mkv", "tiny.mkv", "view.mkv"}
    assert rows["small.mkv"][:2] == ("describe", "short side") and "64 x 40" in rows["small.mkv"][2]
    assert rows["broken.mp4"][:2] == ("describe", "unreadable")
    assert rows["view.mkv"] == ("label", "label", "the label 'view' has no clear meaning")
    assert rows["mute.mkv"] == ("masks", "not found", "the label 'cat' was not found in the first frame")
    assert rows["tiny.mkv"] == ("masks", "area", "the subject covers 1.2 % of the picture, less than 5 %")
    found = json.loads((unbroken / "out" / "statistics.json").read_text())
    assert (found["kept"], found["ready"], found["unfinished"]) == (3, 3, 0)
    assert found["caption_words"] == {"5": 1, "2": 1, "1": 1} and found["seconds"] == {"1": 3} and found["labels"] == {"dog": 3}
    assert "| label | label | 1 |" in (unbroken / "out" / "report.md").read_text()
    with Image.open(unbroken / "out" / "statistics.png") as picture:
        assert picture.size == (1200, 340)


class Killed(BaseException):
    """The process is gone."""


def test_killed_at_any_write_it_goes_on_to_the_same_files(videos, unbroken, tmp_path, monkeypatch):
    """Dies before each single file is moved to its place, once; what was done before is not done again."""
    place, replace, made_now, before = tmp_path / "run", os.replace, [], []

    def replace_or_die(source, target):
        if target in before:
            return replace(source, target)
        before.append(target)
        raise Killed

    monkeypatch.setattr(os, "replace", replace_or_die)
    for _ in range(100):
        made_now.append(len(contents(place)) if place.exists() else 0)
        try:
            shards = curate(videos, place / "work", place / "out")
            break
        except Killed:
            continue
    monkeypatch.undo()
    assert len(made_now) > 30 and made_now == sorted(made_now)
    report(place / "work", shards, place / "out")
    kept, expected = contents(place), contents(unbroken)
    assert {name: data for name, data in kept.items() if ".tar" not in name} == {
        name: data for name, data in expected.items() if ".tar" not in name
    }


def test_a_process_that_is_killed_leaves_nothing_half_written(videos, tmp_path):
    """A real one, with SIGKILL, while it follows masks; the command is then given again."""
    pytest.importorskip("cv2")
    work = tmp_path / "work"
    sources, _ = list_sources(videos)
    shards = pack(sources, work / "shards", 3, Part())
    Records(work, "describe").start({})
    stages.describe(Records(work, "describe"), shards, Oracle(), short_side=48)
    Records(work, "label").start({})
    for shard in shards:  # only the two clips that bring a mask
        for clip in Records(work, "describe").clips(shard.stem):
            record = Records(work, "describe").read(shard.stem, clip)
            usable = "dropped" not in record and Shard(shard).has_mask(clip)
            record |= {"label": "dog"} if usable else {"dropped": {"stage": "label", "rule": "test", "why": "not used"}}
            Records(work, "label").write(shard.stem, clip, record)
    command = [sys.executable, "-m", "magdiff_core.data.curation", "masks", "--work", str(work), "--follow", "tracker"]
    if os.name != "nt":
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while not list((work / "masks").glob("*/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for file in (work / "masks").rglob("*.json"):
        json.loads(file.read_text())
    main(command[3:])
    found, exact = list(read_masks(work / "masks" / "clips-000000" / "00000001.mask.mkv")), made.square(5)
    assert len(found) == 12 and (found[5] & exact).sum() > 0.8 * (found[5] | exact).sum()
    assert sum(len(Records(work, "masks").clips(shard.stem)) for shard in shards) == len(sources)


def test_many_processes_share_the_work(videos, unbroken, tmp_path):
    for index in (1, 0):
        curate(videos, tmp_path / "work", tmp_path / "out", Part(index, 2))
    report(tmp_path / "work", find_shards(tmp_path / "work" / "shards", Part()), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(unbroken / "out")


def test_settings_that_changed_are_refused(tmp_path):
    Records(tmp_path, "describe").start({"short_side": 512, "area": (1, 2)})
    Records(tmp_path, "describe").start({"short_side": 512, "area": (1, 2)})
    with pytest.raises(ValueError, match="short_side 512, now 256"):
        Records(tmp_path, "describe").start({"short_side": 256, "area": (1, 2)})
    with pytest.raises(FileNotFoundError, match="run the command `label` first"):
        Records(tmp_path, "masks").start({})
    Records(tmp_path, "label").start({"theta": 0.5})
    (tmp_path / "describe" / "settings.json").unlink()
    Records(tmp_path, "describe").start({"short_side": 256})
    with pytest.raises(ValueError, match="describe.short_side 512, now 256"):
        Records(tmp_path, "label").start({"theta": 0.5})


def test_shards_of_others_and_damaged_ones(videos, tmp_path):
    clip = made.write_clip(tmp_path / "x.mkv").read_bytes()
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        for name, data in (("deep/01.MKV", clip), ("deep/01.txt", b" a  dog\n"), ("deep/02.txt", b"x"), ("../../03.mkv", clip)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with Shard(tmp_path / "shards" / "a.tar") as shard:
        assert len(shard.clips) == 2 and shard.clips[1] == "deep__01"
        assert not any("/" in name for name in shard.clips)
        packed = shard.take_out("deep__01", tmp_path)
        assert packed.caption == "a dog" and packed.video.read_bytes() == clip and packed.video.parent == tmp_path
        assert shard.take_out(shard.clips[0], tmp_path).video.parent == tmp_path
    (tmp_path / "shards" / "b.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(DamagedShard, match="b.tar is damaged"):
        Shard(tmp_path / "shards" / "b.tar")
    records = Records(tmp_path / "work", "describe")
    tally = stages.describe(records, find_shards(tmp_path / "shards", Part()), Oracle(), short_side=48)
    assert tally.done == 2 and len(tally.damaged) == 1

    sources, _ = list_sources(videos)
    pack(sources, tmp_path / "own", 3, Part())
    with pytest.raises(ValueError, match="other videos"):
        pack(sources[1:], tmp_path / "own", 3, Part())


def test_clips_without_masks_need_a_way_to_find_them(videos, tmp_path):
    sources, _ = list_sources(videos)
    shards = pack(sources, tmp_path / "shards", 99, Part())
    stages.describe(Records(tmp_path, "describe"), shards, Oracle(), short_side=48)
    stages.label(Records(tmp_path, "label"), shards, Words())
    with pytest.raises(ValueError, match="a.mkv.* has no mask of its own: name --grounding"):
        stages.masks(Records(tmp_path, "masks"), shards, Eyes(), None)


def test_lists_of_sources(videos, tmp_path):
    (tmp_path / "list.csv").write_text(f"video,mask\n{videos}/a.mkv,\n{videos}/b.mkv,{videos}/b.mask.png\ngone.mp4,\n")
    sources, problems = list_sources(tmp_path / "list.csv")
    assert [source.caption for source in sources] == ["", ""] and sources[1].subject_mask == videos / "b.mask.png"
    assert len(problems) == 1 and "gone.mp4" in problems[0]
    (tmp_path / "bad.csv").write_text("file\nx\n")
    with pytest.raises(ValueError, match="no column video"):
        list_sources(tmp_path / "bad.csv")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_sources(tmp_path / "gone")


def test_the_command_line_with_real_classes(tmp_path, caplog):
    """Every command, with tiny random models: what they say is nonsense, what is written is whole."""
    folder, work, out = tmp_path / "videos", tmp_path / "work", tmp_path / "out"
    for name in ("a", "b"):
        made.write_clip(folder / f"{name}.mkv", frames=6)
        (folder / f"{name}.txt").write_text("the dog runs")
    (folder / "a.mask.png").write_bytes(b"")
    Image.fromarray(made.square(0).numpy()).save(folder / "a.mask.png")
    (tmp_path / "subjects.txt").write_text("animal: dog, animal\n")
    models = tmp_path / "models"
    blip2, sam2, grounding = made.save_blip2(models / "b"), made.save_sam2(models / "s"), made.save_grounding(models / "g")
    spacy = made.save_spacy(models / "w")

    def run(command, *options):
        main([command, "--work", str(work), *map(str, options)])

    run("pack", "--data", folder, "--per-shard", 1)
    with pytest.raises(SystemExit, match="run the command `describe` first"):
        run("label", "--spacy", spacy)
    run("describe", "--blip2", blip2, "--short-side", 48, "--device", "cpu", "--shard", "0/2")
    run("describe", "--blip2", blip2, "--short-side", 48, "--device", "cpu", "--shard", "1/2")
    with pytest.raises(SystemExit, match="short_side 48, now 512"):
        run("describe", "--blip2", blip2, "--device", "cpu")
    run("label", "--spacy", spacy, "--theta", 1, "--subjects", tmp_path / "subjects.txt")
    with pytest.raises(SystemExit, match="needs --sam2"):
        run("masks")
    run("masks", "--sam2", sam2, "--grounding", grounding, "--box-score", 0, "--area", 0, 1, "--device", "cpu")
    run("collect", "--out", out)
    run("report", "--out", out)
    clips, _ = list_clips(out / "clips.csv")
    assert [clip.caption for clip in clips] == ["the dog runs, dog"] * 2
    first = next(read_masks(clips[0].subject_mask))
    assert torch.equal(first, made.square(0)) and len(list(read_masks(clips[1].subject_mask))) == 6
    record = Records(work, "masks").read("clips-000001", "00000001")
    assert record["mask_from"] == "label" and record["boxes"] and record["answer"] and record["label_from"] == "caption"
