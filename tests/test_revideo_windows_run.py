"""ReVideo Long Video on a small checkpoint of the published layout, called as ComfyUI calls it."""

from __future__ import annotations

import logging
import sys

import pytest
import revideo_files
import torch
from test_revideo_nodes import H, W, clip, conditioning, encoders, file, fuse, loaded, region, rig, tracks  # noqa: F401

LENGTH = revideo_files.CLIP_FRAMES
FRAMES = 2 * LENGTH - 1
STEPS = 1


@pytest.fixture
def store(pack):
    """The module that keeps windows, as the pack has loaded it."""
    return sys.modules[sys.modules[pack["MagDiffReVideoLongVideo"].__module__].edit_long_clip.__globals__["WindowStore"].__module__]


@pytest.fixture
def folder(store):
    """Where windows are kept, without those of other tests."""
    folder = store.WindowStore().folder
    for left in folder.glob("*"):
        left.unlink()
    return folder


@pytest.fixture
def runs(monkeypatch):
    """Arguments of each sampling run."""
    import comfy.sample

    seen = []
    real = comfy.sample.sample

    def sample(*args, **named):
        seen.append((args, named))
        return real(*args, **named)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    return seen


def schema_defaults(node) -> dict:
    return {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if getattr(entry, "default", None) is not None}


@pytest.fixture
def edit(pack, loaded, encoders, folder):  # noqa: F811
    """The node with small settings and any changes to its inputs; gives frames, references, text."""
    node = pack["MagDiffReVideoLongVideo"]

    def run(**changes):
        frames = changes.pop("frames", FRAMES)
        given = {
            **schema_defaults(node),
            "model": loaded[0],
            "clip_vision": encoders[0],
            "vae": encoders[1],
            "control": loaded[3],
            "edited_frame": clip(1),
            "source_frames": clip(frames),
            "edit_mask": region(),
            "tracks": tracks(frames, step=(3.0, 0.0)),
            "resolution": "custom",
            "width": W,
            "height": H,
            "window_frames": LENGTH,
            "steps": STEPS,
        }
        with torch.inference_mode():  # as ComfyUI runs nodes
            return node.execute(**{**given, **changes}).args

    return run


@torch.inference_mode()
def plain_chain(pack, loaded, encoders, source, paths, edited_frame, seed=23):  # noqa: F811
    """The frames that the separate nodes make, with core's sampler and decoder."""
    import nodes
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    frames = len(source)
    told = conditioning(pack, encoders, edited_frame, frames=frames, seed=seed)
    positive, negative = fuse(pack, *told[:2], loaded[3], source, paths=paths)
    model = VideoLinearCFGGuidance().patch(loaded[0], 1.0)[0]
    latent = nodes.KSampler().sample(model, seed, STEPS, 4.0, "euler", "karras", positive, negative, told[2], 1.0)[0]
    return nodes.VAEDecode().decode(encoders[1], latent)[0]


def cut(paths: dict, frames: slice) -> dict:
    return {key: value[frames] for key, value in paths.items()}


def test_one_window_is_the_plain_chain_exactly(pack, edit, loaded, encoders, folder):  # noqa: F811
    source, paths = clip(LENGTH), tracks(LENGTH, step=(3.0, 0.0))
    frames, references, text = edit(source_frames=source, tracks=paths)
    assert torch.equal(frames, plain_chain(pack, loaded, encoders, source, paths, clip(1)))
    assert references.shape == (1, H, W, 3) and torch.equal(references, clip(1))
    assert text.startswith(f"{LENGTH} frames of {W}x{H} in 1 window of {LENGTH}")
    assert not list(folder.glob("*")), "a single window is nothing to go on from"


def test_the_second_window_starts_from_the_last_frame_of_the_first(pack, edit, loaded, encoders):  # noqa: F811
    """Known by the plain chain: source, tracks and seed of the second window, and the first one's last frame as its reference."""
    source, paths = clip(FRAMES), tracks(FRAMES, step=(3.0, 0.0))
    frames, references, text = edit()
    first = plain_chain(pack, loaded, encoders, source[:LENGTH], cut(paths, slice(0, LENGTH)), clip(1))
    assert torch.equal(frames[:LENGTH], first)
    assert torch.equal(references[1], first[-1])
    behind = slice(LENGTH - 1, FRAMES)
    second = plain_chain(pack, loaded, encoders, source[behind], cut(paths, behind), first[-1:].contiguous(), seed=24)
    assert torch.equal(frames[LENGTH:], second[1:])
    assert f"window 2: frames {LENGTH - 1} to {FRAMES - 1}, starts from frame {LENGTH - 1}" in text


def test_what_changes_late_changes_only_late_frames(edit):
    frames = 3 * LENGTH - 2
    last = 2 * LENGTH - 2
    plain = edit(frames=frames)[0]
    paths = tracks(frames, step=(3.0, 0.0))
    paths["track_path"][last + 1 :] += torch.tensor([0.0, 9.0])
    source = clip(frames)
    source[last + 1 :] = source[last + 1 :].flip(2)
    masks = region().repeat(frames, 1, 1)
    masks[last + 1 :, 16:24] = 0.0
    for changes in ({"tracks": paths}, {"source_frames": source}, {"edit_mask": masks}):
        changed = edit(frames=frames, **changes)[0]
        assert torch.equal(changed[: last + 1], plain[: last + 1]), list(changes)
        assert not torch.equal(changed[last + 1 :], plain[last + 1 :]), list(changes)


def test_a_last_window_that_would_be_shorter_is_moved_back(edit, runs):
    frames, references, text = edit(frames=FRAMES + 1)
    assert len(frames) == FRAMES + 1 and len(runs) == len(references) == 3
    assert torch.equal(references[2], frames[FRAMES + 1 - LENGTH])
    assert f"window 3: frames {FRAMES + 1 - LENGTH} to {FRAMES}" in text
    assert runs[2][1]["noise_mask"] is not None, "it shares two frames, which are held"


def test_held_frames_stay_in_the_latent_and_in_the_clip(edit, runs, encoders):  # noqa: F811
    first = edit(frames=LENGTH)[0]
    frames = edit(frames=LENGTH + 1, overlap=2)[0]
    assert torch.equal(frames[:LENGTH], first)
    latent, mask = runs[-1][0][8], runs[-1][1]["noise_mask"]
    assert torch.allclose(latent[:2], encoders[1].encode(first[1:3])) and not latent[2:].any()
    assert mask.shape == (LENGTH, 1, H // 8, W // 8) and mask.flatten(1).mean(1).tolist() == [0.0, 0.0, 1.0]
    free = edit(frames=LENGTH + 1, overlap=2, overlap_mode="cross-fade")[0]
    assert runs[-1][1]["noise_mask"] is None
    assert torch.equal(free[:2], first[:2]), "the common frame that is the reference"
    assert not torch.equal(free[2], first[2]) and not torch.equal(free[3], frames[3])


def test_colour_match_brings_each_frame_to_the_source_before_it_is_a_reference(edit):
    from magdiff_core.motion.colour_match import match_colours

    source = clip(FRAMES)
    plain = edit()[0]
    frames, references, _ = edit(colour_match="source")
    torch.testing.assert_close(frames[:LENGTH], match_colours(plain[:LENGTH], source[:LENGTH], region()), atol=1e-4, rtol=0)
    outside = region()[0] < 0.5
    for frame, wanted in zip(frames, source, strict=True):
        torch.testing.assert_close(frame[outside].mean(0), wanted[outside].mean(0), atol=0.02, rtol=0)
    assert torch.equal(references[1], frames[LENGTH - 1])


def test_windows_without_region_or_point_are_made_and_said(edit):
    masks = region().repeat(FRAMES, 1, 1)
    masks[LENGTH - 1 :] = 0.0
    paths = tracks(FRAMES, step=(3.0, 0.0))
    paths["track_visibility"][LENGTH - 1 :] = False
    frames, _, text = edit(edit_mask=masks, tracks=paths)
    assert torch.isfinite(frames).all()
    first, second = text.splitlines()[1:]
    assert "edit_mask is empty here" in second and "no point of tracks is visible here" in second
    assert "empty" not in first and "no point" not in first and "dB outside" in first


def test_every_setting_reaches_the_model(edit):
    plain = edit(frames=LENGTH, steps=2)[0]
    for changes in (
        {"seed": 24},
        {"steps": 3},
        {"cfg": 2.0},
        {"min_cfg": 2.0},
        {"sampler_name": "heun"},
        {"scheduler": "exponential"},
        {"strength": 0.5},
        {"start_percent": 0.5},
        {"end_percent": 0.5},
        {"fusion": "no time"},
        {"fps": 6},
        {"motion_bucket_id": 60},
        {"augmentation_level": 0.2},
    ):
        assert not torch.equal(edit(**{"frames": LENGTH, "steps": 2, **changes})[0], plain), changes


def test_the_size_follows_the_edited_frame(comfy_session):
    from magdiff_core.host.revideo_windows import clip_size
    from magdiff_core.motion.hints import EditRequest

    source = clip(2, 512, 320)
    request = EditRequest(source, torch.ones(1, 320, 512), torch.zeros(2, 1, 2), torch.ones(2, 1, dtype=torch.bool))
    assert clip_size(request, source[:1], "0.16 MP (as trained)", 64, 64) == (512, 320)
    assert clip_size(request, source[:1], "1 MP (as released)", 64, 64) == (1280, 832)
    assert clip_size(request, source[:1], "custom", 320, 192) == (320, 192)


def test_progress_counts_all_windows_and_shows_pictures(edit, monkeypatch):
    import comfy.utils
    import latent_preview

    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)

    seen = []
    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: seen.append((value, total, preview)))
    try:
        edit(steps=2)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    values = [value for value, *_ in seen]
    assert values == sorted(values) and values[-1] == 2 * 2
    assert set(range(1, 5)) <= set(values)
    assert {total for _, total, _ in seen} == {4}
    previews = [preview for *_, preview in seen if preview]
    assert len(previews) == 4 and all(kind == "JPEG" and picture.size == (W // 8, H // 8) for kind, picture, _ in previews)


def no_region() -> torch.Tensor:
    return torch.zeros(1, H, W)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 2, "window_frames": 3}, "source_frames has 2 frames, this control was trained on clips of 3: give at least 3"),
        ({"window_frames": 2}, "window_frames is 2, this control was trained on clips of 3: give at least 3"),
        ({"window_frames": 9}, "source_frames has 5 frames, a window 9"),
        ({"overlap": 3}, "overlap is 3, window_frames 3: give at least 1 and at most 2"),
        ({"tracks": tracks(4)}, "tracks has 4 frames, the clip 5"),
        ({"tracks": tracks(5, start=(900.0, 9.0))}, "no point of tracks is ever visible inside of source_frames .64x64."),
        ({"tracks": {"track_path": torch.zeros(5, 0, 2)}}, "tracks holds no point"),
        ({"tracks": {"path": 1}}, "tracks must hold track_path"),
        ({"edit_mask": torch.ones(3, H, W)}, "edit_mask has 3 frames, the images have 5: give one mask or 5"),
        ({"edit_mask": no_region()}, "edit_mask is empty.*invert the mask"),
        ({"edited_frame": clip(1, 192, 64)}, "edited_frame is 192x64, source_frames 64x64, another shape"),
        ({"width": 192}, "source_frames are 64x64, the clip is sampled at 192x64, another shape"),
        ({"width": 72, "height": 72}, "width and height are 72x72: give multiples of 64"),
        ({"source_frames": torch.full((5, H, W, 3), float("nan"))}, "source_frames holds 61440 values that are NaN"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(edit, runs, encoders, monkeypatch, changes, words):  # noqa: F811
    monkeypatch.setattr(encoders[1], "encode", lambda pixels: pytest.fail("encoded"))
    with pytest.raises(ValueError, match=words):
        edit(**changes)
    assert not runs


def test_a_model_of_another_kind_is_refused(edit, runs, comfy_session):
    from tiny import tiny_model

    with pytest.raises(ValueError, match="the control branch takes 8 channels"):
        edit(model=tiny_model())
    assert not runs


def test_an_edited_frame_of_another_size_is_fitted(edit):
    large = torch.nn.functional.interpolate(clip(1).movedim(-1, 1), scale_factor=2, mode="nearest").movedim(1, -1)
    frames, references, _ = edit(frames=LENGTH, edited_frame=large)
    assert frames.shape == (LENGTH, H, W, 3) and references.shape == (1, H, W, 3)
    assert (references - clip(1)).abs().mean() < 0.1


def test_strength_0_is_the_plain_model(edit, caplog):
    with caplog.at_level(logging.INFO, "magdiff"):
        plain = edit(strength=0.0)[0]
        other = edit(strength=0.0, tracks=tracks(FRAMES, step=(0.0, 3.0)), edit_mask=1.0 - region())[0]
    assert torch.equal(plain, other)
    assert "Context Windows" not in caplog.text, "no advice that is meant for another node"
