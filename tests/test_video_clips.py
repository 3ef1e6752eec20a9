"""Real clips: what is listed, which frames are taken, and that no bad file stops the rest."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy
import pytest
import torch
from PIL import Image

from magdiff_core.data.video_clips import Sampling, list_clips, read_clip, start_of
from magdiff_core.data.video_frames import BadVideo, read_frame_at, read_frames


def write_video(path, frames, rate=24, size=(64, 48)):
    """Frame n is grey of brightness 8 n, with a white column at x = n."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "mpeg4", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0" if path.suffix == ".mkv" else "yuv420p"
        for number in range(frames):
            pixels = numpy.full((height, width, 3), 8 * number, numpy.uint8)
            pixels[:, number] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def number_of(picture):
    """Which frame it is, by its brightness."""
    return round(float(picture[0, -1].float().mean()) / 8)


def test_frames_are_taken_at_the_rate_from_start_to_end(tmp_path):
    write_video(tmp_path / "a.mkv", 30, rate=24)
    for start, first in ((0.0, 0), (0.5, 4), (1.0, 8)):  # 8 frames at 8 a second span 22 of 30
        pictures, seconds = read_frames(tmp_path / "a.mkv", 8, 8.0, start)
        assert [number_of(picture) for picture in pictures] == list(range(first, first + 22, 3))
        assert seconds == pytest.approx(first / 24)
    assert number_of(read_frame_at(tmp_path / "a.mkv", 5 / 24)) == 5


def test_a_short_video_gives_closer_frames_and_too_short_ones_are_refused(tmp_path):
    write_video(tmp_path / "a.mkv", 16, rate=24)
    pictures, _ = read_frames(tmp_path / "a.mkv", 8, 8.0, 0.0)
    assert [number_of(picture) for picture in pictures] == list(range(0, 15, 2))
    write_video(tmp_path / "b.mkv", 7)
    with pytest.raises(BadVideo, match="has 7 frames, a clip needs 8"):
        read_frames(tmp_path / "b.mkv", 8, 8.0, 0.0)


def test_folder_and_table_list_the_same_clips(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b", "sub/a"):
        write_video(tmp_path / f"{name}.mkv", 12)
        (tmp_path / f"{name}.txt").write_text("a  grey\nclip\n")
    Image.new("L", (64, 48), 255).save(tmp_path / "b.mask.png")
    write_video(tmp_path / "no_words.mkv", 2)
    (tmp_path / "notes.pdf").write_text("")
    clips, problems = list_clips(tmp_path)
    assert [(clip.video.name, clip.caption) for clip in clips] == [("b.mkv", "a grey clip"), ("a.mkv", "a grey clip")]
    assert clips[0].subject_mask == tmp_path / "b.mask.png" and clips[1].subject_mask is None
    assert problems == ["no_words.mkv: no caption, write one into no_words.txt"]

    rows = ("caption,video,mask", "a grey clip,b.mkv,b.mask.png", "a grey clip,sub/a.mkv,", "x,gone.mkv,", ",b.mkv,")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    from_table, problems = list_clips(tmp_path / "list.csv")
    assert from_table == clips
    assert len(problems) == 2 and "there is no video" in problems[0] and "caption is empty" in problems[1]


def test_what_holds_no_clip_is_refused_in_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_clips(tmp_path / "gone")
    with pytest.raises(ValueError, match="no file ends in"):
        list_clips(tmp_path)
    (tmp_path / "list.csv").write_text("file,caption\na,b\n")
    with pytest.raises(ValueError, match="no column video"):
        list_clips(tmp_path / "list.csv")


def test_windows_begin_in_their_own_part_by_name_and_seed(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mkv", 9)
        (tmp_path / f"{name}.txt").write_text("x")
    Image.new("L", (64, 48), 255).save(tmp_path / "b.mask.png")
    clips, _ = list_clips(tmp_path, windows=3)
    sampling = Sampling(windows=3, seed=5)
    starts = [start_of(clip, sampling) for clip in clips]
    assert [clip.video.stem for clip in clips] == ["a", "a", "a", "b"]
    assert all(part / 3 <= start < (part + 1) / 3 for part, start in enumerate(starts[:3]))
    assert starts[3] == 0.0, "a still mask is of the first frame"
    assert starts == [start_of(clip, sampling) for clip in clips]
    assert starts[0] != start_of(clips[0], Sampling(windows=3, seed=6))


def test_subject_is_the_first_frame_under_its_mask_or_all_of_it(tmp_path):
    write_video(tmp_path / "a.mkv", 12)
    (tmp_path / "a.txt").write_text("x")
    sampling = Sampling(frames=4, size=48, frame_rate=24)
    (clip,), _ = list_clips(tmp_path)
    frames, subject = read_clip(clip, sampling)
    assert frames.shape == (4, 48, 48, 3) and 0 <= frames.min() and frames.max() <= 1
    assert torch.equal(subject, frames[:1])

    mask = numpy.zeros((48, 64), numpy.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    (clip,), _ = list_clips(tmp_path)
    frames, subject = read_clip(clip, sampling)
    # the square is cut from the centre: 8 columns fall away on each side
    assert not subject[:, :, :24].any() and torch.equal(subject[:, :, 24:], frames[:1, :, 24:])
    assert round(float(frames[1, 0, 0, 0] * 255)) == 8

    mask[:] = 0
    mask[:, :4] = 255
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    with pytest.raises(BadVideo, match="empty inside the square"):
        read_clip(clip, sampling)
    Image.fromarray(mask[:20]).save(tmp_path / "a.mask.png")
    with pytest.raises(BadVideo, match="64 x 20, the video 64 x 48"):
        read_clip(clip, sampling)


def test_a_video_mask_is_read_where_the_clip_begins(tmp_path):
    write_video(tmp_path / "a.mkv", 30)
    (tmp_path / "a.txt").write_text("x")
    (clip,), _ = list_clips(tmp_path)
    sampling = Sampling(frames=4, size=48, frame_rate=24, seed=1)
    first = int(start_of(clip, sampling) * 27)
    assert first > 0
    for white in (first, first - 1):
        with av.open(str(tmp_path / "a.mask.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
            for number in range(30):
                pixels = numpy.full((48, 64, 3), 255 if number == white else 0, numpy.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        (clip,), _ = list_clips(tmp_path)
        if white == first:
            frames, subject = read_clip(clip, sampling)
            assert round(float(frames[0, 0, -1, 0] * 255)) == 8 * first and torch.equal(subject, frames[:1])
        else:
            with pytest.raises(BadVideo, match="empty"):
                read_clip(clip, sampling)


def test_damaged_files_become_a_reason(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0" * 4000)
    with pytest.raises(BadVideo, match="a.mp4 cannot be read"):
        read_frames(tmp_path / "a.mp4", 8, 8.0, 0.0)
    (tmp_path / "m.png").write_bytes(b"no picture")
    from magdiff_core.data.video_frames import read_picture

    with pytest.raises(BadVideo, match="m.png cannot be read"):
        read_picture(tmp_path / "m.png")


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    """As old programs write them; and a damaged file may show such bytes anywhere in its metadata."""
    from magdiff_core.data.curation.frames import probe
    from magdiff_core.metrics.clip_files import read_clip as read_measured

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        container.metadata["title"] = "caf@"
        stream = container.add_stream("ffv1", rate=8)
        stream.metadata["title"] = "caf@"
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numpy.zeros((16, 16, 3), numpy.uint8), format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "a.mkv").read_bytes()
    assert data.count(b"caf@") == 2
    (tmp_path / "a.mkv").write_bytes(data.replace(b"caf@", "café".encode("latin-1")))
    assert len(read_frames(tmp_path / "a.mkv", 4, 8.0, 0.0)[0]) == 4
    assert probe(tmp_path / "a.mkv")[0].frames == 4
    assert len(read_measured(tmp_path / "a.mkv")) == 4
