"""ReVideo Long Video after an interrupt or an error: what is kept, what is computed again, and what is recognised as the same."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from test_revideo_nodes import clip, encoders, file, loaded, region, rig, tracks  # noqa: F401
from test_revideo_windows_run import FRAMES, LENGTH, STEPS, edit, folder, runs, store  # noqa: F401

CLIP = 3 * LENGTH - 2


@pytest.fixture
def stop(monkeypatch):
    """Cancel once the progress bar of a run has passed that many steps, as ComfyUI's own hook does it."""
    import comfy.model_management
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    before = comfy.utils.PROGRESS_BAR_HOOK

    def after(steps: int) -> None:
        def hook(value, total, preview, node_id=None):
            comfy.model_management.interrupt_current_processing(value > steps)
            comfy.model_management.throw_exception_if_processing_interrupted()

        comfy.utils.set_progress_bar_global_hook(hook)

    yield after
    comfy.utils.set_progress_bar_global_hook(before)
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def interrupted(edit, stop, runs, folder):  # noqa: F811
    """Run with changes, cancelled in the middle of a window (counted from 1); the windows kept are those before."""
    import comfy.model_management

    def run(window: int, **changes) -> None:
        stop((window - 1) * STEPS)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            edit(frames=CLIP, **changes)
        stop(10**6)
        assert len(list(folder.glob("*"))) == window - 1
        runs.clear()

    return run


def test_it_goes_on_behind_the_last_finished_window(edit, interrupted, runs, folder):  # noqa: F811
    whole = edit(frames=CLIP)
    assert len(runs) == 3 and not list(folder.glob("*")), "nothing is left of a complete clip"
    interrupted(2)
    again = edit(frames=CLIP)
    assert len(runs) == 2, "windows 2 and 3"
    assert torch.equal(again[0], whole[0]) and torch.equal(again[1], whole[1])
    assert [line.endswith("kept from before the interrupt") for line in again[2].splitlines()[1:]] == [True, False, False]
    assert not list(folder.glob("*"))
    runs.clear()
    assert torch.equal(edit(frames=CLIP)[0], whole[0]) and len(runs) == 3


def test_two_interrupts_and_the_other_joins(edit, interrupted, runs):  # noqa: F811
    options = {"overlap_mode": "cross-fade", "overlap": 2, "colour_match": "source"}
    frames = LENGTH + 2
    source = {"source_frames": clip(frames), "tracks": tracks(frames, step=(3.0, 0.0))}
    whole = edit(**source, **options)[0]
    interrupted(2, **source, **options)
    interrupted(3, **source, **options)
    assert torch.equal(edit(**source, **options)[0], whole)
    assert len(runs) == 1


def test_an_error_in_a_later_window_loses_nothing(edit, encoders, runs, monkeypatch):  # noqa: F811
    decode = encoders[1].decode
    monkeypatch.setattr(encoders[1], "decode", lambda samples: decode(samples) if len(runs) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit(frames=CLIP)
    runs.clear()
    monkeypatch.setattr(encoders[1], "decode", decode)
    edit(frames=CLIP)
    assert len(runs) == 2


def test_a_change_in_a_late_window_keeps_the_early_ones(edit, interrupted, runs):  # noqa: F811
    interrupted(3)
    paths = tracks(CLIP, step=(3.0, 0.0))
    paths["track_path"][LENGTH:] += 4.0
    frames = edit(frames=CLIP, tracks=paths)[0]
    assert len(runs) == 2, "windows 2 and 3"
    assert torch.equal(frames, edit(frames=CLIP, tracks=paths)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 24},
        {"steps": STEPS + 1},
        {"cfg": 3.9},
        {"min_cfg": 1.1},
        {"sampler_name": "heun"},
        {"scheduler": "exponential"},
        {"strength": 0.9},
        {"start_percent": 0.1},
        {"end_percent": 0.9},
        {"fusion": "no time"},
        {"motion_maps": "reference"},
        {"fps": 9},
        {"motion_bucket_id": 126},
        {"augmentation_level": 0.03},
        {"colour_match": "source"},
        {"overlap_mode": "cross-fade"},
        {"edited_frame": clip(2)[1:]},
        {"edit_mask": region().flip(1).roll(1, 1)},
        {"source_frames": clip(CLIP).flip(1)},
        {"width": 128, "height": 128},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_inputs_start_anew(edit, store, changes, monkeypatch):  # noqa: F811
    """By the names of the files alone, before anything is computed."""
    seen = []

    def look(self, digests):
        seen.append(digests)
        raise StopIteration

    monkeypatch.setattr(store.WindowStore, "make_room", look)
    for given in ({}, {}, changes):
        with pytest.raises(StopIteration):
            edit(frames=CLIP, **given)
    first, second, other = seen
    assert first == second and len(set(first)) == 3
    assert not set(first) & set(other)


def test_a_file_that_cannot_be_read_is_made_again(edit, interrupted, runs, folder, caplog):  # noqa: F811
    whole = edit(frames=CLIP)[0]
    interrupted(3)
    oldest = min(folder.glob("*"), key=lambda kept: kept.stat().st_mtime_ns)
    oldest.write_bytes(oldest.read_bytes()[:-100])
    assert torch.equal(edit(frames=CLIP)[0], whole)
    assert len(runs) == 3, "also what was made from it"
    assert "cannot be read" in caplog.text


def test_a_disk_that_refuses_stops_nothing(edit, store, folder, monkeypatch, caplog):  # noqa: F811
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    assert len(edit()[0]) == FRAMES
    assert "No space left on device" in caplog.text and "cannot be kept" in caplog.text
    assert not list(folder.glob("*")), "nothing half-written"


def test_other_unfinished_clips_do_not_fill_the_disk(store, folder, monkeypatch):  # noqa: F811
    kept = store.WindowStore()
    for age, name in enumerate(("new", "middle", "old", "mine")):
        kept.save(name, torch.zeros(1000))
        os.utime(folder / f"{name}.safetensors", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(store, "OTHERS_BYTES", 9000)
    kept.make_room(["mine"])
    assert {left.stem for left in folder.glob("*")} == {"new", "middle", "mine"}
    assert torch.equal(kept.load("mine"), torch.zeros(1000)) and kept.load("old") is None


@pytest.fixture
def identity_of(comfy_session):
    from magdiff_core.host.revideo_windows_identity import identity_of

    return identity_of


def test_values_are_told_apart_and_sharing_makes_no_difference(identity_of):
    values = [None, True, 1, 1.0, "1", b"1", (), {}, "", [1, 2], [[1], 2], {"a": 1}, {"b": 1}, torch.zeros(2), torch.zeros(2, 1)]
    values += [torch.ones(2), torch.zeros(2, dtype=torch.float64), torch.float16, "torch.float16", len, int]
    assert len({identity_of(value) for value in values}) == len(values)
    shared = [1, 2]
    assert identity_of([shared, shared]) == identity_of([[1, 2], [1, 2]])
    assert identity_of(torch.zeros(4, 4).T[1:]) == identity_of(torch.zeros(3, 4))
    circle = [1]
    circle.append(circle)
    assert identity_of(circle) == identity_of(circle)


def test_functions_are_known_by_what_they_hold(identity_of):
    def scaled(by, shift=0.0):
        return lambda x, up=shift: by * x + up

    assert identity_of(scaled(2.0)) == identity_of(scaled(2.0))
    assert len({identity_of(scaled(2.0)), identity_of(scaled(3.0)), identity_of(scaled(2.0, 1.0))}) == 3


def test_what_cannot_be_described_is_never_the_same(identity_of):
    assert identity_of(object()) != identity_of(object())
    thing = iter([1])
    assert identity_of(thing) != identity_of(thing)
    sparse = torch.eye(2).to_sparse()
    assert identity_of(sparse) != identity_of(sparse), "no error either"


def test_a_model_is_known_by_its_weights_and_patches(pack, identity_of, loaded, file):  # noqa: F811
    import comfy.model_management
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    model, control = loaded[0], loaded[3]
    known = identity_of(model), identity_of(control)
    again = pack["MagDiffLoadReVideo"].execute(file).args
    assert (identity_of(again[0]), identity_of(again[3])) == known, "loaded anew"
    assert identity_of(model.clone()) == known[0]
    key = next(name for name in model.model_state_dict("diffusion_model.") if name.endswith("attn1.to_k.weight"))
    patched = model.clone()
    patched.add_patches({key: (torch.full(model.model_state_dict()[key].shape, 1e-3),)}, 0.5)
    stronger = model.clone()
    stronger.add_patches({key: (torch.full(model.model_state_dict()[key].shape, 1e-3),)}, 0.6)
    sampled = ModelSamplingContinuousEDM().patch(model, "v_prediction", 100.0, 0.01)[0]
    guided = [VideoLinearCFGGuidance().patch(model, value)[0] for value in (1.0, 2.0)]
    different = [identity_of(one) for one in (model, patched, stronger, sampled, *guided)]
    assert len(set(different)) == len(different)
    for one, expected in ((patched, different[1]), (sampled, different[3])):
        comfy.model_management.load_models_gpu([one])
        assert identity_of(one) == expected and identity_of(model) == known[0], "loaded with patches"
    comfy.model_management.unload_all_models()


def test_other_weights_are_another_model(identity_of, loaded, encoders):  # noqa: F811
    clip_vision, vae = encoders
    for thing, module in (
        (loaded[0], loaded[0].model.diffusion_model),
        (loaded[3], loaded[3].patcher.model),
        (clip_vision, clip_vision.model),
        (vae, vae.first_stage_model),
    ):
        known = identity_of(thing)
        state = copy.deepcopy(module.state_dict())
        with torch.inference_mode():
            for weight in module.state_dict().values():
                weight.mul_(1.001)
        try:
            assert identity_of(thing) != known
        finally:
            with torch.inference_mode():
                for name, weight in module.state_dict().items():
                    weight.copy_(state[name])
        assert identity_of(thing) == known
