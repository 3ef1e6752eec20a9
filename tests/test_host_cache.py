"""What does not change from step to step is computed once in a sampling run, and anew in the next."""

from __future__ import annotations

import pytest
import torch

STEPS = 4


@pytest.fixture(scope="module")
def model(rig):
    return rig.adapted(rig.tiny_model())


@pytest.fixture(scope="module")
def parts(model):
    return model.get_additional_models_with_key("magdiff")[0].model


def once(parts) -> list[torch.nn.Module]:
    """Every layer that must run once a run."""
    streams = [parts.apa.find(site) for site in parts.apa.sites]
    levels = [conv for level in parts.hfa.level.values() for conv in (level.conv_in, level.conv_out)]
    return [parts.projector, parts.hfa.conv_z, *levels, *(s.to_k_image for s in streams), *(s.to_v_image for s in streams)]


@pytest.mark.parametrize("mode", ["generate", "edit"])
def test_subject_layers_run_once_a_run(rig, model, parts, mode):
    layers = once(parts)
    with rig.calls_of(*layers) as counts:
        first = rig.run(model, *rig.wired(**rig.subject(mode=mode)), steps=STEPS)
        assert counts == [1] * len(layers)
        second = rig.run(model, *rig.wired(**rig.subject(mode=mode)), steps=STEPS)
        assert counts == [2] * len(layers)
    assert torch.equal(first, second)


def test_subject_layers_run_once_with_cond_and_uncond_apart(rig, model, parts, monkeypatch):
    monkeypatch.setattr(model.model, "memory_required", lambda shape, cond_shapes=None: 0 if shape[0] <= rig.FRAMES else 1e30)
    layers = once(parts)
    with rig.calls_of(*layers, model.model.diffusion_model) as counts:
        rig.run(model, *rig.wired(), steps=STEPS)
    assert counts == [1] * len(layers) + [2 * STEPS]


def test_subject_layers_run_once_for_each_of_two_subjects(rig, model, parts):
    (positive, negative), (other, _) = rig.wired(), rig.wired(**rig.subject(seed=100))
    layers = once(parts)
    with rig.calls_of(*layers) as counts:
        rig.run(model, positive + other, negative, steps=STEPS)
    assert counts == [2] * len(layers)


def test_a_batch_of_two_prompts_and_one_negative_shares_one_computation(rig, model, parts):
    payload = rig.subject()
    positive = rig.attach(rig.text(1) + rig.text(2), **payload)
    negative = rig.attach(rig.text(3), **payload)
    layers = once(parts)
    with rig.calls_of(*layers) as counts:
        rig.run(model, positive, negative, steps=STEPS)
    assert counts == [1] * len(layers)


def test_text_keys_are_projected_for_one_row_a_clip(rig, model):
    rows = []
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    handle = attention.to_k.register_forward_pre_hook(lambda _module, args: rows.append(args[0].shape[0]))
    try:
        rig.run(model, *rig.wired(), steps=STEPS)
    finally:
        handle.remove()
    assert rows == [2] * STEPS


def test_text_keys_keep_every_row_where_prompts_differ_by_frame(rig, model):
    rows = []
    payload = rig.subject()
    positive = rig.attach([[rig.random(rig.FRAMES, 77, 32, seed=9), {}]], **payload)
    attention = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    handle = attention.to_k.register_forward_pre_hook(lambda _module, args: rows.append(args[0].shape[0]))
    try:
        rig.run(model, positive, rig.attach(rig.text(3), **payload), steps=STEPS)
    finally:
        handle.remove()
    assert rows == [2 * rig.FRAMES] * STEPS


def test_a_slider_runs_no_encoder(rig, model):
    """Only new settings are attached: tokens and latents stay the very same objects."""
    payload = rig.subject()
    a = rig.wired(**payload)
    b = rig.wired(**{**payload, "alphas": rig.AlphaSettings(alpha_image=0.5)})
    for key in ("magdiff_tokens", "magdiff_latents"):
        assert a[0][0][1]["model_conds"][key].cond is b[0][0][1]["model_conds"][key].cond
    assert not torch.equal(rig.run(model, *a), rig.run(model, *b))


def test_nothing_of_a_run_survives_it(rig, model):
    rig.run(model, *rig.wired())
    assert "magdiff_run_cache" not in str(model.model_options)
    assert "magdiff_call" not in str(model.model_options)


def test_our_entries_leave_those_of_other_packs_alone(rig):
    import comfy.conds

    theirs = comfy.conds.CONDConstant("theirs")
    [[_, extras]] = rig.attach([[torch.zeros(1, 77, 32), {"model_conds": {"theirs": theirs}, "note": 1}]], **rig.subject())
    assert extras["model_conds"]["theirs"] is theirs and extras["note"] == 1
    again = rig.attach([[torch.zeros(1, 77, 32), extras]], tokens=rig.tokens(seed=5))
    assert again[0][1]["model_conds"]["magdiff_latents"] is extras["model_conds"]["magdiff_latents"]
    assert again[0][1]["model_conds"]["magdiff_tokens"] is not extras["model_conds"]["magdiff_tokens"]
