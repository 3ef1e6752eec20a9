"""The command line of the metrics on made-up folders: clips matched by name, results written, wrong input named."""

from __future__ import annotations

import json

import metric_files
import numpy as np
import pytest
from PIL import Image

from magdiff_core.metrics import __main__ as command
from magdiff_core.metrics.clip_files import find_clips, natural, read_clip, read_mask, read_prompts

FRAMES, SIDE = 3, 16


def write_clip(folder, seed, frames=FRAMES, change=0.0, side=SIDE):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(frames):
        picture = generator.integers(0, 200, (side, side, 3), dtype=np.uint8).astype(float) + 255 * change
        # numbers without leading zeros: 10 comes after 9
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"frame_{number}.png")


@pytest.fixture
def tree(tmp_path):
    for number in (1, 2, 10):
        write_clip(tmp_path / "made" / f"clip_{number}", number, change=0.1)
        write_clip(tmp_path / "sources" / f"clip_{number}", number)
    (tmp_path / "masks").mkdir()
    for number in (1, 2, 10):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "masks" / f"clip_{number}.png")
    (tmp_path / "prompts.csv").write_text("clip,prompt\n" + "".join(f'clip_{n},"a dog, {n}"\n' for n in (1, 2, 10)))
    return tmp_path


def test_psnr_of_folders(tree, capsys):
    arguments = [str(tree / "made"), "--sources", str(tree / "sources"), "--edit-masks", str(tree / "masks")]
    assert command.main([*arguments, "--out", str(tree / "out")]) == 0
    document = json.loads((tree / "out" / "results.json").read_text("utf-8"))
    assert len(document["clips"]) == 3
    # every pixel is off by 25 or 26 of 255
    assert document["metrics"]["psnr_outside"]["value"] == pytest.approx(20.2, abs=0.2)
    assert "PSNR outside the edit region" in capsys.readouterr().out
    assert (tree / "out" / "results.txt").read_text("utf-8").startswith("3 clips of 3 frames, 16x16")
    with Image.open(tree / "out" / "plot.png") as plot:
        assert plot.width == 960


def test_fvd_of_folders_with_torchscript_after_a_yes(tree, capsys):
    script = metric_files.write_script(tree)
    arguments = [str(tree / "made"), "--real", str(tree / "sources"), "--i3d", str(script), "--out", str(tree / "out")]
    arguments += ["--device", "cpu"]
    assert command.main(arguments) == 2
    assert "allow_torchscript" in capsys.readouterr().err
    assert command.main([*arguments, "--allow-torchscript", "--frames", "2"]) == 0
    document = json.loads((tree / "out" / "results.json").read_text("utf-8"))
    assert document["metrics"]["fvd"]["value"] > 0
    assert document["real_clips"] == [{"frames": 2, "width": SIDE, "height": SIDE}] * 3
    assert any("means nothing" in warning for warning in document["warnings"])


def test_what_belongs_together_is_matched_by_name(tree, capsys):
    (tree / "masks" / "clip_2.png").unlink()
    arguments = [str(tree / "made"), "--sources", str(tree / "sources"), "--keep-masks", str(tree / "masks")]
    assert command.main(arguments) == 2
    assert "--keep-masks has nothing for clip_2" in capsys.readouterr().err


def test_clips_are_found_in_natural_order_and_read_from_videos_too(tree):
    import av

    assert list(find_clips(tree / "made")) == ["clip_1", "clip_2", "clip_10"]
    assert sorted(["f10", "f9", "F1"], key=natural) == ["F1", "f9", "f10"]
    frames = read_clip(tree / "made" / "clip_1")
    assert frames.shape == (FRAMES, SIDE, SIDE, 3) and frames.max() <= 1
    with av.open(str(tree / "film.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "bgr0"
        for number in range(5):
            colour = np.full((SIDE, SIDE, 3), (40 * number, 10, 200), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    film = read_clip(tree / "film.avi", 4)
    assert film.shape == (4, SIDE, SIDE, 3)
    assert (film[3, 0, 0] * 255).round().tolist() == [120, 10, 200]


def test_a_file_of_sound_alone_is_named(tmp_path):
    import av

    with av.open(str(tmp_path / "song.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="song.mkv: it holds no pictures"):
        read_clip(tmp_path / "song.mkv")


def test_masks_and_prompts(tree):
    assert read_mask(tree / "masks" / "clip_1.png", frames=2).shape == (1, SIDE, SIDE)
    assert read_prompts(tree / "prompts.csv")["clip_10"] == "a dog, 10"
    (tree / "texts").mkdir()
    (tree / "texts" / "clip_1.txt").write_text("a cat\n", "utf-8")
    assert read_prompts(tree / "texts") == {"clip_1": "a cat"}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda tree: (tree / "made" / "clip_1" / "frame_1.png").write_bytes(b"no picture"), "cannot read .*clip_1"),
        (lambda tree: write_clip(tree / "made" / "clip_3", 3, frames=1), "clip_3 has 1 frames, 3 are wanted"),
        (lambda tree: Image.new("RGB", (9, 9)).save(tree / "made" / "clip_1" / "frame_9.png"), "several sizes"),
        (lambda tree: Image.new("RGB", (9, 9)).save(tree / "made" / "clip_1.png"), "two clips named clip_1"),
    ],
)
def test_wrong_clips_are_named(tree, break_it, message):
    break_it(tree)
    with pytest.raises(ValueError, match=message):
        for path in find_clips(tree / "made").values():
            read_clip(path, None if "several" in message else FRAMES)


def test_wrong_folders_and_prompts_are_named(tree):
    with pytest.raises(ValueError, match="there is no folder"):
        find_clips(tree / "nowhere")
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clip"):
        find_clips(tree / "empty")
    (tree / "prompts.csv").write_text("name,text\na,b\n")
    with pytest.raises(ValueError, match="clip and prompt are wanted"):
        read_prompts(tree / "prompts.csv")
