"""The paper's tables on made-up trees of the four data sets: cases by the rules, and each command from data to numbers."""

from __future__ import annotations

import json
import shutil

import metric_files
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.protocol import __main__ as command
from benchmarks.protocol import cases, make

SIDE = 72
SMALL = ["--checkpoint", "magdiff-mini.safetensors", "--adapter", "magdiff-mini-adapter.safetensors", "--size", "64"]


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIDE + 24, SIDE), Image.Resampling.BICUBIC)


def film(path, frames=33, seed=0):
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    still = np.asarray(picture(seed))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIDE + 24, SIDE, "yuv420p"
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.roll(still, number, 1).copy(), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def mask(path, size=(SIDE + 24, SIDE), palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = np.zeros(size[::-1], np.uint8)
    marks[20:50, 35:65] = 2 if palette else 255
    result = Image.fromarray(marks, "P" if palette else "L")
    if palette:
        result.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    result.save(path)


PROMPTS = """Classes

subject_name,class
bear_plushie,stuffed animal
dog2,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
]
"""


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A tiny tree of each data set."""
    root = tmp_path_factory.mktemp("data")
    ucf = root / "ucf101"
    for number, kind in enumerate(("ApplyEyeMakeup", "YoYo")):
        for take in (1, 2):
            film(ucf / "UCF-101" / kind / f"v_{kind}_g01_c0{take}.avi", frames=33 if take == 1 else 12, seed=number)
    mask(ucf / "masks" / "v_YoYo_g01_c01.png")
    vtt = root / "msrvtt"
    videos, sentences = [], []
    for number in (7, 10, 11):
        name = f"video{number}"
        film(vtt / "TestVideo" / f"{name}.mp4", seed=number)
        videos.append({"video_id": name, "split": "train" if number == 11 else "test"})
        sentences += [{"video_id": name, "caption": f"a red circle {word} in {number}"} for word in ("moves", "rests")]
    (vtt / "test_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    booth = root / "dreambooth"
    for subject in ("bear_plushie", "dog2"):
        (booth / "dataset" / subject).mkdir(parents=True)
        for number in (0, 1):
            picture(number).save(booth / "dataset" / subject / f"0{number}.jpg")
    (booth / "dataset" / "prompts_and_classes.txt").write_text(PROMPTS)
    mask(booth / "masks" / "dog2.png")
    davis = root / "davis"
    for name in ("bear", "camel", "not-listed"):
        for number in range(15):
            (davis / "JPEGImages" / "480p" / name).mkdir(parents=True, exist_ok=True)
            picture(number).save(davis / "JPEGImages" / "480p" / name / f"{number:05}.jpg")
            mask(davis / "Annotations" / "480p" / name / f"{number:05}.png", palette=True)
    (davis / "ImageSets" / "2017").mkdir(parents=True)
    (davis / "ImageSets" / "2017" / "val.txt").write_text("bear\ncamel\n")
    (davis / "prompts.csv").write_text("name,prompt\nbear,a red bear\ncamel,a blue camel\nnot-listed,no\n")
    return root


@pytest.fixture(scope="module")
def model_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    clip, dino, script = (write(folder) for write in (metric_files.write_clip, metric_files.write_dino, metric_files.write_script))
    return [
        "--clip",
        str(clip),
        "--dino",
        str(dino),
        "--i3d",
        str(script),
        "--c3d",
        str(script),
        "--allow-torchscript",
        "--device",
        "cpu",
    ]


# -- cases


def test_ucf101_draws_evenly_over_classes_and_names_them_in_words(roots):
    two = cases.ucf101(roots / "ucf101", 2, 0)
    assert sorted(case.source[0].parent.name for case in two) == ["ApplyEyeMakeup", "YoYo"]
    everything = cases.ucf101(roots / "ucf101", 0, 0)
    assert [case.name for case in everything] == sorted(case.name for case in everything) and len(everything) == 4
    assert {case.prompt for case in everything} == {"apply eye makeup", "yo yo"}
    # without a mask the whole frame is the subject
    assert [len(case.masks) for case in everything] == [0, 0, 1, 0]
    assert cases.ucf101(roots / "ucf101", 2, 0) == two
    assert cases.class_words("TaiChi") == "tai chi" and cases.class_words("BasketballDunk") == "basketball dunk"


def test_prompts_of_ucf101_may_be_given(roots, tmp_path):
    shutil.copytree(roots / "ucf101", tmp_path / "ucf")
    (tmp_path / "ucf" / "prompts.csv").write_text("name,prompt\nYoYo,a person plays with a yo-yo\n")
    prompts = {case.prompt for case in cases.ucf101(tmp_path / "ucf", 0, 0)}
    assert prompts == {"apply eye makeup", "a person plays with a yo-yo"}


def test_msrvtt_takes_test_videos_with_one_caption_each(roots):
    found = cases.msrvtt(roots / "msrvtt", 0, 0)
    assert [case.name for case in found] == ["video7", "video10"]
    assert all(case.prompt.endswith(case.name[5:]) for case in found)
    drawn = {tuple(case.prompt for case in cases.msrvtt(roots / "msrvtt", 0, seed)) for seed in range(8)}
    assert len(drawn) > 1 and cases.msrvtt(roots / "msrvtt", 0, 3) == cases.msrvtt(roots / "msrvtt", 0, 3)


def test_dreambooth_crosses_subjects_with_the_prompts_of_their_kind(roots):
    found = {case.name: case for case in cases.dreambooth(roots / "dreambooth", 0, 0)}
    assert {name: case.prompt for name, case in found.items()} == {
        "bear_plushie_00": "a stuffed animal in the jungle",
        "bear_plushie_01": "a red stuffed animal",
        "dog2_00": "a dog wearing a red hat",
    }
    assert found["dog2_00"].source[0].name == "00.jpg" and found["dog2_00"].masks and not found["dog2_00"].has_real


def test_davis_takes_eight_frames_evenly_with_their_masks(roots):
    bear, camel = cases.davis(roots / "davis", 0, 0)
    assert (bear.name, bear.prompt, bear.mode) == ("bear", "a red bear", "edit")
    assert [path.stem for path in bear.source] == ["00000", "00002", "00004", "00006", "00008", "00010", "00012", "00014"]
    assert [path.stem for path in bear.masks] == [path.stem for path in bear.source]
    # numbers of objects, not brightness, say what is subject; 64 of 72 pixels, from the middle of 96
    marks = cases.subject_mask(bear, SIDE)
    assert marks.shape == (8, SIDE, SIDE) and marks[0, 35, 37] == 1 and marks[0, 5, 5] == 0
    assert float(marks.mean()) == pytest.approx(30 * 30 / SIDE**2)
    assert cases.source_frames(camel, 64).shape == (8, 64, 64, 3)


def test_short_videos_are_taken_more_closely(roots):
    long, short = (cases.ucf101(roots / "ucf101", 0, 0)[number] for number in (0, 1))
    assert cases.real_clip(long, 8, 4, 64).shape == cases.real_clip(short, 8, 4, 64).shape == (8, 64, 64, 3)
    # 12 frames: a stride of 4 or 2 would need 29 or 15
    assert torch.equal(cases.real_clip(short, 8, 4, 64), cases.real_clip(short, 8, 1, 64))
    with pytest.raises(ValueError, match="has 12 frames, 13 are wanted"):
        cases.real_clip(short, 13, 4, 64)


def test_an_empty_mask_stands_for_the_whole_frame(roots, tmp_path):
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "empty.png")
    case = cases.Case("one", "", (), (tmp_path / "empty.png",), "generate", False)
    assert cases.subject_mask(case, 64) is None


@pytest.mark.parametrize(
    ("table", "lose", "message"),
    [
        ("ucf101", "UCF-101", "holds no UCF-101"),
        ("msrvtt", "test_videodatainfo.json", "holds no test_videodatainfo.json"),
        ("msrvtt", "TestVideo/video7.mp4", "1 of 2 test videos .*video7"),
        ("dreambooth", "dataset/dog2", "names the subject dog2"),
        ("dreambooth", "dataset/prompts_and_classes.txt", "comes with DreamBooth's data set"),
        ("davis", "prompts.csv", "DAVIS has no prompts: write one"),
        ("davis", "Annotations/480p/bear/00002.png", "has no mask for 00002.jpg"),
    ],
)
def test_what_a_data_set_lacks_is_named(roots, tmp_path, table, lose, message):
    root = tmp_path / table
    shutil.copytree(roots / table, root)
    shutil.rmtree(root / lose) if (root / lose).is_dir() else (root / lose).unlink()
    with pytest.raises(cases.DataError, match=message):
        cases.TABLES[table].read(root, 0, 0)


# -- whole commands, with the small model


@pytest.mark.parametrize(
    ("table", "clips", "metrics"),
    [
        ("ucf101", 2, ["textual_alignment", "consistency_consecutive", "consistency_all_pairs", "dino_score", "fvd", "video_is"]),
        ("msrvtt", 2, ["textual_alignment", "consistency_consecutive", "consistency_all_pairs", "dino_score", "fvd"]),
        ("dreambooth", 2, ["textual_alignment", "consistency_consecutive", "consistency_all_pairs", "dino_score"]),
        ("davis", 1, ["textual_alignment", "consistency_consecutive", "consistency_all_pairs"]),
    ],
)
def test_a_table_from_data_to_numbers(pack, roots, model_files, tmp_path, capsys, table, clips, metrics):
    arguments = [table, "--root", str(roots / table), "--out", str(tmp_path), "--clips", str(clips), "--steps", "1", *SMALL]
    assert command.main([*arguments, *model_files]) == 0
    document = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(document["metrics"]) == metrics
    assert document["clips"] == [{"frames": 8, "width": 64, "height": 64}] * clips
    assert all(entry["value"] is not None for entry in document["metrics"].values())
    made = sorted((tmp_path / "made").iterdir())
    assert len(made) == clips and all(len(list(folder.iterdir())) == 8 for folder in made)
    printed = capsys.readouterr().out
    assert cases.TABLES[table].title in printed and f"{cases.TABLES[table].paper['textual_alignment']:.2f}" in printed
    assert (tmp_path / "plot.png").is_file()


def test_a_stopped_run_goes_on_and_other_settings_are_refused(pack, roots, model_files, tmp_path, capsys, monkeypatch):
    arguments = ["dreambooth", "--root", str(roots / "dreambooth"), "--out", str(tmp_path), "--steps", "1", *SMALL, *model_files]
    made = []
    monkeypatch.setattr(make.Maker, "make", lambda self, case, seed: made.append((case.name, seed)) or torch.rand(8, 64, 64, 3))
    assert command.main([*arguments, "--clips", "3"]) == 0
    assert made == [("bear_plushie_00", 0), ("bear_plushie_01", 1), ("dog2_00", 2)]
    shutil.rmtree(tmp_path / "made" / "bear_plushie_01")
    assert command.main([*arguments, "--clips", "3"]) == 0
    assert made[3:] == [("bear_plushie_01", 1)]
    assert command.main([*arguments, "--cfg", "3"]) == 2
    assert "made with cfg = 7.5, now it is 3.0" in capsys.readouterr().err


def test_clips_of_another_method_are_measured_as_they_are(roots, model_files, tmp_path, capsys):
    for name in ("bear_plushie_00", "bear_plushie_01"):
        make.write_clip(torch.rand(8, 64, 64, 3), tmp_path / "made" / name)
    arguments = [
        "dreambooth",
        "--root",
        str(roots / "dreambooth"),
        "--made",
        str(tmp_path / "made"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main([*arguments, *model_files]) == 2
    assert "has nothing for dog2_00" in capsys.readouterr().err
    # a video of 96 x 72: its middle square counts
    film(tmp_path / "made" / "dog2_00.mp4", 8)
    assert command.main([*arguments, *model_files]) == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [clip["width"] for clip in document["clips"]] == [64, 64, SIDE] and document["clips"][2]["height"] == SIDE
    assert not (tmp_path / "out" / "made").exists()
    # masks of the made subjects instead of following the given one
    for number, name in enumerate(("bear_plushie_00", "bear_plushie_01", "dog2_00")):
        mask(tmp_path / "marks" / f"{name}.png", (96, 72) if number == 2 else (80, 64))
    before = document["metrics"]["dino_score"]["value"]
    assert command.main([*arguments, *model_files, "--subject-masks", str(tmp_path / "marks")]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["metrics"]["dino_score"]["value"] != before


def test_options_that_cannot_work_are_refused(roots, model_files, capsys):
    for arguments, message in (
        (["davis", *SMALL, "--frames", "16", *model_files], "DAVIS is edited in 8 frames"),
        (["ucf101", *model_files], "--checkpoint"),
        (["ucf101", *SMALL], "at least one model file"),
        (["ucf101", *SMALL, "--clips", "0", *model_files], "at least 1 is needed"),
    ):
        with pytest.raises(SystemExit):
            command.main([arguments[0], "--root", str(roots), *arguments[1:]])
        assert message in capsys.readouterr().err
