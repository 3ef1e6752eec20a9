"""Core's context windows: long clips in short windows keep the subject, and see the data of their own frames."""

from __future__ import annotations

import pytest
import torch

LONG, WINDOW = 24, 8


def changed_frames(a: torch.Tensor, b: torch.Tensor) -> list[int]:
    return (a - b).abs().flatten(1).amax(1).gt(1e-4).nonzero().flatten().tolist()


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("part", ["tokens", "latents"])
def test_a_changed_reference_changes_every_window(rig, adapted, anchor, part):
    payload = rig.subject(LONG)
    other = {**payload, part: rig.subject(LONG, seed=100)[part]}
    model = rig.windowed(adapted, anchor=anchor)
    a, b = (rig.run(model, *rig.wired(**p), frames=LONG, steps=1) for p in (payload, other))
    assert changed_frames(a, b) == list(range(LONG))


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("mode", ["generate", "edit"])
def test_one_window_over_the_clip_equals_the_run_without_windows(rig, adapted, anchor, mode):
    wired = rig.wired(**rig.subject(WINDOW, mode))
    plain = rig.run(adapted, *wired, frames=WINDOW)
    for length in (WINDOW, 16):
        assert torch.equal(rig.run(rig.windowed(adapted, length, anchor=anchor), *wired, frames=WINDOW), plain)


def test_a_looped_window_over_the_clip_equals_the_run_without_windows_where_no_layer_mixes_frames(rig, base):
    """Windows of all frames in another order: each frame still gets its own subject latent."""
    model = rig.adapted(base, temporal=0.0, image_stream=0.0)
    wired = rig.wired(**rig.subject(6, "edit"))
    plain = rig.run(model, *wired, frames=6)
    looped = rig.run(rig.windowed(model, 4, 2, "looped_uniform"), *wired, frames=6)
    assert rig.difference(looped, plain) < rig.BATCHING


@pytest.mark.parametrize("anchor", [False, True])
def test_generation_puts_the_subject_at_the_start_of_every_window(rig, adapted, anchor):
    """The last window equals a clip of its own, made from the same noise with the same subject."""
    wired = rig.wired(**rig.subject(LONG))
    noise = rig.random(LONG, 4, 8, 8, seed=1)
    whole = rig.run(rig.windowed(adapted, anchor=anchor), *wired, noise=noise, frames=LONG, steps=1)
    # With the causal fix the window starts one frame earlier, and core drops that frame from the result.
    start = LONG - WINDOW - anchor
    payload = rig.subject(LONG - start)
    alone = rig.run(adapted, *rig.wired(**payload), noise=noise[start:], frames=LONG - start, steps=1)
    assert rig.difference(whole[-WINDOW:], alone[-WINDOW:]) < rig.BATCHING


@pytest.mark.parametrize("anchor", [False, True])
def test_editing_gives_each_window_the_data_of_its_frames(rig, adapted, anchor):
    from magdiff_core.host.conds import SubjectLatents, SubjectTokens

    payload = rig.subject(LONG, "edit")
    noise = rig.random(LONG, 4, 8, 8, seed=1)
    whole = rig.run(rig.windowed(adapted, anchor=anchor), *rig.wired(**payload), noise=noise, frames=LONG, steps=1)
    start = LONG - WINDOW - anchor
    tokens = SubjectTokens({"last": payload["tokens"].layers["last"][:, start:]}, black_entry=True)
    levels = tuple(level[:, start:] for level in payload["latents"].levels)
    part = {**payload, "tokens": tokens, "latents": SubjectLatents(levels, LONG - start, "edit")}
    alone = rig.run(adapted, *rig.wired(**part), noise=noise[start:], frames=LONG - start, steps=1)
    assert rig.difference(whole[-WINDOW:], alone[-WINDOW:]) < rig.BATCHING


def test_the_causal_frame_counts_where_one_more_frame_makes_the_whole_clip(rig, base):
    """9 frames in windows of 8: with the causal fix the last window holds 9 frames, and not in the clip's order."""
    model = rig.adapted(base, temporal=0.0, image_stream=0.0)
    payload = rig.subject(9, "edit")
    noise = rig.random(9, 4, 8, 8, seed=1)
    plain = rig.run(model, *rig.wired(**payload), noise=noise, frames=9, steps=1)
    model = rig.windowed(model, 8, 1, "looped_uniform", anchor=True)
    looped = rig.run(model, *rig.wired(**payload), noise=noise, frames=9, steps=1)
    assert rig.difference(looped, plain) < rig.BATCHING


def test_a_change_in_one_edited_frame_reaches_only_its_window(rig, adapted):
    from magdiff_core.host.conds import SubjectLatents

    payload = rig.subject(LONG, "edit")
    levels = tuple(level.clone() for level in payload["latents"].levels)
    for level in levels:
        level[:, 10] += 1.0
    other = {**payload, "latents": SubjectLatents(levels, LONG, "edit")}
    model = rig.windowed(adapted)
    a, b = (rig.run(model, *rig.wired(**p), frames=LONG, steps=1) for p in (payload, other))
    assert changed_frames(a, b) == list(range(8, 16))


@pytest.mark.parametrize("schedule", ["standard_uniform", "looped_uniform", "batched", "standard_static"])
def test_every_schedule_of_core_runs(rig, adapted, schedule):
    model = rig.windowed(adapted, 8, 4 if schedule != "batched" else 0, schedule, "pyramid", anchor=True, stride=2)
    assert torch.isfinite(rig.run(model, *rig.wired(**rig.subject(20, "edit")), frames=20)).all()


def test_prompts_that_change_along_the_clip(rig, adapted):
    """Text [24, 77, D] whose first window is constant: later windows still see their own rows."""
    payload = rig.subject(LONG)
    rows = rig.random(1, 77, 32, seed=7).repeat(LONG, 1, 1)
    rows[20:] = rig.random(4, 77, 32, seed=8)
    negative = rig.attach(rig.text(32), **payload)
    model = rig.windowed(adapted)
    changing = rig.run(model, rig.attach([[rows, {}]], **payload), negative, frames=LONG, steps=1)
    constant = rig.run(model, rig.attach([[rows[:1], {}]], **payload), negative, frames=LONG, steps=1)
    assert changed_frames(changing, constant) == list(range(16, 24))
    difference = (changing - constant).abs().flatten(1).amax(1)
    # Frames with a prompt of their own differ more than those that only share their clip.
    assert difference[20:].min() > difference[16:20].max()


def test_frozen_data_is_computed_once_for_all_windows(rig, adapted):
    adapter = adapted.get_additional_models_with_key("magdiff")[0].model
    site = adapter.apa.sites[0]
    watched = (adapter.projector, adapter.hfa.conv_z, adapter.apa.find(site).to_k_image)
    for mode in ("generate", "edit"):
        model = rig.windowed(adapted, 8, 4, "looped_uniform", stride=2)
        with rig.calls_of(*watched) as counts:
            rig.run(model, *rig.wired(**rig.subject(LONG, mode)), frames=LONG, steps=3)
        assert counts == [1, 1, 1]
