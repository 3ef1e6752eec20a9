"""Weights belong to ComfyUI's memory management; activations are part of its plan; gradients reach every weight."""

from __future__ import annotations

import pytest
import torch


def adapter_of(model):
    return model.get_additional_models_with_key("magdiff")[0]


def is_loaded(patcher) -> bool:
    import comfy.model_management

    return any(loaded.model.model is patcher.model for loaded in comfy.model_management.current_loaded_models)


def test_the_adapter_is_loaded_beside_the_base_while_sampling(rig, base):
    import comfy.model_management

    comfy.model_management.unload_all_models()
    model = rig.adapted(base)
    assert not is_loaded(adapter_of(model))
    seen = []
    rig.run(model, *rig.wired(), callback=lambda *_: seen.append((is_loaded(base), is_loaded(adapter_of(model)))))
    assert seen == [(True, True)] * 2


def test_with_every_part_off_the_model_still_runs_without_the_adapter_acting(rig, base):
    off = rig.adapted(base, 0.0, 0.0, 0.0, 0.0)
    with rig.calls_of(*adapter_of(off).model.modules()) as counts:
        rig.run(off, *rig.wired())
    assert not any(counts)


def test_the_same_latent_after_everything_was_unloaded(rig, adapted, full):
    import comfy.model_management

    for _ in range(2):
        comfy.model_management.unload_all_models()
        assert not is_loaded(adapter_of(adapted))
        assert torch.equal(rig.run(adapted, *rig.wired()), full)


def test_unloading_in_the_middle_of_a_queue_keeps_weights_whole(rig, adapted):
    import comfy.model_management

    before = {key: value.clone() for key, value in adapter_of(adapted).model.state_dict().items()}
    rig.run(adapted, *rig.wired())
    comfy.model_management.unload_all_models()
    for key, value in adapter_of(adapted).model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_partial_load_gives_the_same_latent(rig, base, full, little_memory, share):
    import comfy.model_management

    comfy.model_management.unload_all_models()
    offloaded = little_memory(share)
    assert torch.equal(rig.run(rig.adapted(base), *rig.wired()), full)
    assert {(name, low) for name, low, _ in offloaded} == {("BaseModel", True), ("MagDiffAdapter", True)}
    comfy.model_management.unload_all_models()


def test_a_partial_load_applies_differences_to_base_weights(rig, base, little_memory):
    import comfy.model_management

    state = base.model.diffusion_model.state_dict()
    keys = ("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight", "out.2.weight")
    weights = {**rig.adapter_weights(base), **{f"base.{k}": 0.2 * rig.random(*state[k].shape, seed=4) for k in keys}}
    model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
    expected = rig.run(model, *rig.wired())
    comfy.model_management.unload_all_models()
    offloaded = little_memory(0.0)
    out = rig.run(model, *rig.wired())
    assert max(patches for _, _, patches in offloaded) == len(keys)
    assert rig.difference(out, expected) < 1e-5
    comfy.model_management.unload_all_models()


def test_parameters_outside_a_layer_are_cast_at_use(rig, base, full):
    """Core's partial load leaves parameters of non-leaf modules on the offload device and in the file's dtype."""
    weights = rig.adapter_weights(base)
    for key, value in weights.items():
        if key.endswith(("alpha_text", "alpha_image")) or key == "projector.latents":
            weights[key] = value.to(torch.float16)
    loaded = rig.adapter(base, weights)
    assert loaded.patcher.model.projector.latents.dtype == torch.float16
    out = rig.run(rig.apply_adapter(base, loaded, rig.PartStrengths()), *rig.wired())
    assert rig.difference(out, full) < 0.01


@pytest.mark.parametrize("windows", [False, "before", "after"])
def test_core_plans_for_our_activations(rig, base, monkeypatch, windows):
    """The shape that core estimates memory for is larger than the plain model's, with context windows too."""
    def planned(model, frames):
        shapes = []
        real = model.model.memory_required

        def note(shape, cond_shapes=None):
            shapes.append(list(shape))
            return real(shape, cond_shapes=cond_shapes or {})

        monkeypatch.setattr(model.model, "memory_required", note)
        rig.run(model, *rig.prompts(), frames=frames, steps=1)
        monkeypatch.setattr(model.model, "memory_required", real)
        # The first two are the plan: cond and uncond together, and the least.
        return [shape[0] * shape[2] * shape[3] for shape in shapes[:2]]

    plain, model = base, rig.adapted(rig.windowed(base) if windows == "before" else base)
    if windows:
        plain = rig.windowed(base)
    if windows == "after":
        model = rig.windowed(model)
    for ours, theirs in zip(planned(model, 16), planned(plain, 16), strict=True):
        assert ours >= 1.2 * theirs


def test_a_deep_clone_is_rebuilt_from_the_file(rig, base, full, tmp_path):
    """What Select Device and multi-GPU do: a second adapter from disk, with weights of its own."""
    import comfy.utils

    from magdiff_core.host.adapter_file import load_adapter_file

    path = tmp_path / "adapter.safetensors"
    comfy.utils.save_torch_file(rig.adapter_weights(base), str(path), metadata=rig.config().to_metadata())
    loaded = load_adapter_file(str(path))
    assert torch.equal(rig.run(rig.apply_adapter(base, loaded, rig.PartStrengths()), *rig.wired()), full)
    first = loaded.patcher
    for copy in (first.deepclone_multigpu(torch.device("cpu")), first.clone(force_deepcopy=True)):
        assert copy.model is not first.model
        ours, theirs = first.model.state_dict(), copy.model.state_dict()
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]) and ours[key].data_ptr() != theirs[key].data_ptr()
        model = rig.apply_adapter(base, loaded, rig.PartStrengths())
        model.set_additional_models("magdiff", [copy])
        assert torch.equal(rig.run(model, *rig.wired()), full)


def test_a_model_with_its_adapter_is_freed_with_its_last_reference(rig):
    import gc
    import weakref

    import comfy.model_management

    model = rig.adapted(rig.tiny_model(seed=8))
    rig.run(model, *rig.wired())
    references = [weakref.ref(model.model.diffusion_model), weakref.ref(adapter_of(model).model)]
    comfy.model_management.unload_all_models()
    del model
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    assert [reference() for reference in references] == [None, None]


def test_gradients_reach_every_adapter_weight(rig):
    """A training step as a trainer would make it: the base's apply_model, our conds, NoCache, two clips in one batch."""
    from comfy.patcher_extension import merge_nested_dicts

    from magdiff_core.adapter import adapter_from_state_dict
    from magdiff_core.host.conds import LatentsOfArea, SubjectLatents, SubjectTokens

    clips, frames = 2, 3
    with torch.inference_mode(False), torch.enable_grad():
        base = rig.tiny_model()
        weights = {key: value.clone() for key, value in rig.adapter_weights(base).items()}
        loaded = rig.adapter(base, weights)
        # A trainer puts a plain module where the host's is: layers of torch.nn, nothing offloaded.
        trained = adapter_from_state_dict(weights, loaded.config)
        loaded.patcher.model = trained.requires_grad_(True)
        model = rig.apply_adapter(base, loaded, rig.PartStrengths())
        options = {**model.model_options["transformer_options"], "cond_or_uncond": [0] * clips, "uuids": [None] * clips}
        merge_nested_dicts(options.setdefault("wrappers", {}), model.wrappers, copy_dict1=False)
        options["sigmas"] = sigma = torch.full((clips * frames,), 3.0)
        model.pre_run()
        tokens = SubjectTokens({"last": rig.random(clips, 2, 9, 24, seed=2)}, black_entry=True)
        levels = tuple(rig.random(clips, frames, 4, n, n, seed=n) for n in (8, 10, 12))
        conds = {
            "magdiff_tokens": tokens,
            "magdiff_alphas": rig.AlphaSettings(),
            "magdiff_latents": LatentsOfArea(SubjectLatents(levels, frames, "edit"), None),
        }
        x = rig.random(clips * frames, 4, 8, 8, seed=6)
        text = rig.random(clips, 77, 32, seed=7).repeat_interleave(frames, 0)

        def predict(x, text, conds):
            return model.model.apply_model(x, sigma[: x.shape[0]], None, text, None, options, **conds)

        out = predict(x, text, conds)
        (out**2).mean().backward()
        without = [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not without
        assert all(parameter.grad is None for parameter in base.model.parameters())

        # Each clip of the batch has its own subject: the same as one clip at a time.
        options["cond_or_uncond"], options["uuids"] = [0], [None]
        options["sigmas"] = sigma[:frames]
        for i in range(clips):
            rows = slice(i * frames, (i + 1) * frames)
            part = {
                **conds,
                "magdiff_tokens": SubjectTokens({"last": tokens.layers["last"][i : i + 1]}, black_entry=True),
                "magdiff_latents": LatentsOfArea(SubjectLatents(tuple(v[i : i + 1] for v in levels), frames, "edit"), None),
            }
            assert rig.difference(predict(x[rows], text[rows], part), out[rows]) < rig.BATCHING
