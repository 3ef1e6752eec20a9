"""A MODEL with an adapter stays usable: clones, queues, interrupts, errors, second applications, several prompts."""

from __future__ import annotations

import pytest
import torch


def options_of(model) -> str:
    return str(model.model_options) + str({kind: keys for kind, keys in model.wrappers.items() if keys})


def test_the_base_and_its_other_clones_are_untouched(rig, base, vanilla):
    clone = base.clone()
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    options = options_of(base), options_of(clone)
    model = rig.adapted(base)
    rig.run(model, *rig.wired())
    assert (options_of(base), options_of(clone)) == options
    assert base.additional_models == clone.additional_models == {}
    for key, value in base.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for patcher in (base, clone, model.parent):
        assert torch.equal(rig.run(patcher, *rig.prompts()), vanilla)


def test_a_part_that_is_off_installs_nothing(rig, base):
    def installed(*strengths):
        model = rig.adapted(base, *strengths)
        options = model.model_options["transformer_options"]
        replaced = len(options.get("patches_replace", {}).get("attn2", {}))
        return set(options.get("patches", {})), replaced, any(model.wrappers.values())

    temporal = {"forward_timestep_embed_patch", "middle_patch", "attn2_output_patch"}
    blocks = len([key for key in rig.adapter_weights(base) if key.endswith("to_k_image.weight")])
    assert installed(0.0, 0.0, 0.0) == (set(), 0, False)
    assert installed(1.0, 0.0, 0.0) == (temporal, 0, True)
    assert installed(0.0, 1.0, 0.0) == ({"attn2_patch"}, blocks, True)
    assert installed(0.0, 0.0, 1.0) == ({"input_block_patch"}, 0, True)
    assert installed(1.0, 1.0, 1.0) == (temporal | {"attn2_patch", "input_block_patch"}, blocks, True)


def test_alternating_between_clones_changes_nothing(rig, base, adapted, vanilla, full):
    half = rig.adapted(base, temporal=0.5)
    expected = rig.run(half, *rig.wired())
    for _ in range(2):
        assert torch.equal(rig.run(adapted, *rig.wired()), full)
        assert torch.equal(rig.run(half, *rig.wired()), expected)
        assert torch.equal(rig.run(base, *rig.prompts()), vanilla)


def test_a_clone_of_the_adapted_model_works_and_can_be_changed_alone(rig, adapted, full):
    clone = adapted.clone()
    clone.set_model_attn1_output_patch(lambda n, extra_options: n * 0.5)
    assert torch.equal(rig.run(adapted.clone(), *rig.wired()), full)
    assert not torch.equal(rig.run(clone, *rig.wired()), full)
    assert torch.equal(rig.run(adapted, *rig.wired()), full)


def test_queueing_again_gives_the_same_latent(rig, adapted, full):
    for _ in range(2):
        assert torch.equal(rig.run(adapted, *rig.wired()), full)
    wired = rig.wired()
    assert torch.equal(rig.run(adapted, *wired), rig.run(adapted, *wired))


@pytest.mark.parametrize("kind", ["interrupt", "error in the callback", "error in a layer"])
def test_a_run_that_breaks_leaves_a_working_model(rig, adapted, full, kind):
    import comfy.model_management

    error = comfy.model_management.InterruptProcessingException if kind == "interrupt" else RuntimeError

    def stop(*_args):
        raise error

    broken, handle = None, None
    if kind == "error in a layer":
        layer = adapted.model.diffusion_model.output_blocks[1][1].transformer_blocks[0].attn2.to_out
        handle = layer.register_forward_pre_hook(stop)
    else:

        def broken(step, *_):
            if step == 1:
                stop()

    options = options_of(adapted)
    try:
        with pytest.raises(error):
            rig.run(adapted, *rig.wired(), steps=4, callback=broken)
    finally:
        if handle is not None:
            handle.remove()
    assert options_of(adapted) == options
    assert torch.equal(rig.run(adapted, *rig.wired()), full)


def test_a_broken_run_frees_what_it_computed(rig, base):
    """Neither the guider's options nor a layer keep the run's cache alive."""
    import gc
    import weakref

    from magdiff_core.host import wrappers

    made = []

    class Watched(wrappers.RunCache):
        def __init__(self):
            super().__init__()
            made.append(weakref.ref(self))

    model = rig.adapted(base)
    original, wrappers.RunCache = wrappers.RunCache, Watched

    def stop(*_):
        raise RuntimeError("stop")

    try:
        rig.run(model, *rig.wired())
        with pytest.raises(RuntimeError):
            rig.run(model, *rig.wired(), callback=stop)
    finally:
        wrappers.RunCache = original
    gc.collect()
    assert len(made) == 2 and all(reference() is None for reference in made)


class TestAppliedTwice:
    def test_the_second_strengths_win(self, rig, base, adapted, full):
        for strengths in ((0.0, 1.0, 1.0), (0.3, 0.7, 0.2), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
            once = rig.adapted(base, *strengths)
            twice = rig.apply_adapter(adapted, rig.adapter(base), rig.PartStrengths(*strengths))
            assert torch.equal(rig.run(twice, *rig.wired()), rig.run(once, *rig.wired()))
        assert torch.equal(rig.run(adapted, *rig.wired()), full)

    def test_parts_that_were_off_can_be_turned_on_and_off_again(self, rig, base, full, vanilla):
        loaded = rig.adapter(base)
        off = rig.apply_adapter(base, loaded, rig.PartStrengths(0.0, 0.0, 0.0, 0.0))
        on = rig.apply_adapter(off, loaded, rig.PartStrengths())
        assert torch.equal(rig.run(on, *rig.wired()), full)
        off_again = rig.apply_adapter(on, loaded, rig.PartStrengths(0.0, 0.0, 0.0, 0.0))
        assert torch.equal(rig.run(off_again, *rig.wired()), vanilla)

    def test_nothing_is_installed_twice(self, rig, base):
        loaded = rig.adapter(base)
        once = rig.apply_adapter(base, loaded, rig.PartStrengths())
        thrice = rig.apply_adapter(rig.apply_adapter(once, loaded, rig.PartStrengths()), loaded, rig.PartStrengths())

        def counts(model):
            patches = model.model_options["transformer_options"]["patches"]
            wrappers = {kind: sum(map(len, keys.values())) for kind, keys in model.wrappers.items()}
            return {name: len(entries) for name, entries in patches.items()}, wrappers

        assert counts(thrice) == counts(once)
        assert len(thrice.additional_models["magdiff"]) == 1

    def test_another_adapter_replaces_the_first(self, rig, base, adapted):
        weights = rig.adapter_weights(base, seed=9)
        once = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        twice = rig.apply_adapter(adapted, rig.adapter(base, weights), rig.PartStrengths())
        assert torch.equal(rig.run(twice, *rig.wired()), rig.run(once, *rig.wired()))

    def test_an_adapter_with_fewer_parts_leaves_nothing_of_the_first(self, rig, base, adapted):
        weights = {k: v for k, v in rig.adapter_weights(base).items() if k.startswith("temporal.")}
        once = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        twice = rig.apply_adapter(adapted, rig.adapter(base, weights), rig.PartStrengths())
        assert torch.equal(rig.run(twice, *rig.prompts()), rig.run(once, *rig.prompts()))

    def test_patches_of_other_nodes_between_the_two_stay(self, rig, base):
        def halve(n, extra_options):
            return n * 0.5

        def same(h, transformer_options):
            return h * 1.5

        loaded = rig.adapter(base)
        between = rig.apply_adapter(base, loaded, rig.PartStrengths())
        between.set_model_attn2_output_patch(halve)
        between.set_model_input_block_patch(same)
        twice = rig.apply_adapter(between, loaded, rig.PartStrengths(temporal=0.0))
        patches = twice.model_options["transformer_options"]["patches"]
        assert patches["attn2_output_patch"] == [halve] and same in patches["input_block_patch"]


class TestDifferencesToBaseWeights:
    KEYS = ("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight", "out.2.bias")

    @pytest.fixture(scope="class")
    def weights(self, rig, base):
        state = base.model.diffusion_model.state_dict()
        changes = {f"base.{key}": 0.3 * rig.random(*state[key].shape, seed=i) for i, key in enumerate(self.KEYS)}
        return {**rig.adapter_weights(base), **changes}

    def by_hand(self, rig, weights, strength):
        """A base whose weights were changed before anything else saw it."""
        model = rig.tiny_model()
        state = model.model.diffusion_model.state_dict()
        for key in self.KEYS:
            state[key] += strength * weights[f"base.{key}"]
        return model

    @pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
    def test_they_are_added_times_their_strength(self, rig, base, weights, strength):
        ours = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths(base=strength))
        expected = rig.run(rig.adapted(self.by_hand(rig, weights, strength)), *rig.wired())
        assert rig.difference(rig.run(ours, *rig.wired()), expected) < 1e-5

    def test_applying_again_replaces_them(self, rig, base, weights, vanilla):
        loaded = rig.adapter(base, weights)
        first = rig.apply_adapter(base, loaded, rig.PartStrengths())
        rig.run(first, *rig.wired())
        for strength in (0.5, 0.0, 1.0):
            once = rig.apply_adapter(base, loaded, rig.PartStrengths(base=strength))
            assert bool(once.patches) == (strength > 0.0)
            expected = rig.run(once, *rig.wired())
            twice = rig.apply_adapter(first, loaded, rig.PartStrengths(base=strength))
            # The run in between leaves the first clone's weights in memory.
            rig.run(first, *rig.wired())
            assert torch.equal(rig.run(twice, *rig.wired()), expected)
        assert torch.equal(rig.run(base, *rig.prompts()), vanilla)

    def test_a_reloaded_file_replaces_them_too(self, rig, base, weights):
        first = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        copies = {key: value.clone() for key, value in weights.items()}
        twice = rig.apply_adapter(first, rig.adapter(base, copies), rig.PartStrengths(base=0.5))
        assert all(len(patches) == 1 for patches in twice.patches.values())

    def test_they_stack_on_a_lora_whatever_was_applied_between(self, rig, base, weights):
        lora = {"diffusion_model.input_blocks.0.0.weight": (0.1 * torch.ones(32, 4, 3, 3),)}
        loaded = rig.adapter(base, weights)
        between = rig.apply_adapter(base, loaded, rig.PartStrengths())
        between.add_patches(lora, 1.0)
        twice = rig.apply_adapter(between, loaded, rig.PartStrengths())
        hand = rig.tiny_model()
        hand.model.diffusion_model.state_dict()["input_blocks.0.0.weight"].add_(0.1)
        once = rig.apply_adapter(hand, rig.adapter(hand, weights), rig.PartStrengths())
        assert rig.difference(rig.run(twice, *rig.wired()), rig.run(once, *rig.wired())) < 1e-5

    def test_their_base_is_known_by_hash(self, rig, base, weights):
        from magdiff_core.host.adapter_file import weight_hash

        state = rig.tiny_model().model.diffusion_model.state_dict()
        hashes = {key: weight_hash(state[key]) for key in self.KEYS}
        loaded = rig.adapter(base, weights, base_hashes=hashes, base="the tiny base")
        model = rig.apply_adapter(base, loaded, rig.PartStrengths())
        rig.run(model, *rig.wired())
        # With the differences in memory the base is still the same base.
        rig.apply_adapter(model, loaded, rig.PartStrengths(base=0.5))
        rig.apply_adapter(base, loaded, rig.PartStrengths())
        other = rig.tiny_model(seed=5)
        with pytest.raises(ValueError, match=r"another base: input_blocks\.0\.0\.weight.*Load the tiny base"):
            rig.apply_adapter(other, loaded, rig.PartStrengths())
        rig.apply_adapter(other, loaded, rig.PartStrengths(base=0.0))


class TestSeveralConditionings:
    def test_combined_prompts_with_one_subject(self, rig, adapted, full):
        payload = rig.subject()
        positive = rig.attach(rig.text(1) + rig.text(2), **payload)
        negative = rig.attach(rig.text(3), **payload)
        with rig.unet_calls(adapted) as calls:
            out = rig.run(adapted, positive, negative)
        assert [len(sides) for sides, _ in calls] == [3, 3]
        assert torch.isfinite(out).all() and not torch.equal(out, full)

    def test_two_subjects_combine_as_the_mean_of_two_runs(self, rig, adapted):
        """One step at CFG 1: core averages what each conditioning predicts."""
        (first, negative), (second, _) = rig.wired(), rig.wired(**rig.subject(seed=100))
        both, a, b = (rig.run(adapted, p, negative, steps=1, cfg=1.0) for p in (first + second, first, second))
        assert rig.difference(a, b) > 1e-3
        assert rig.difference(both, (a + b) / 2) < rig.BATCHING

    def test_timestep_ranges_switch_subjects(self, rig, adapted):
        import node_helpers

        (first, negative), (second, _) = rig.wired(), rig.wired(**rig.subject(seed=100))

        def ranged(conditioning, start, end):
            return node_helpers.conditioning_set_values(conditioning, {"start_percent": start, "end_percent": end})

        switched = rig.run(adapted, ranged(first, 0.0, 0.5) + ranged(second, 0.5, 1.0), negative, steps=4)
        whole = rig.run(adapted, ranged(first, 0.0, 1.0), negative, steps=4)
        assert torch.equal(whole, rig.run(adapted, first, negative, steps=4))
        assert rig.difference(switched, whole) > 1e-3

    def test_an_area_takes_its_part_of_the_subject_latent(self, rig, base):
        """What follows the first convolution, for the right half of the picture: the same half of the whole picture's."""
        import node_helpers

        weights = {key: value for key, value in rig.adapter_weights(base).items() if "level" not in key}
        model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths(0.0, 0.0, 1.0))
        positive, negative = rig.wired(latents=rig.latents())
        half = {"area": (8, 4, 0, 4), "strength": 1.0, "set_area_to_bounds": False}
        noise = rig.random(rig.FRAMES, 4, 8, 8, seed=1)
        seen = []
        layer = model.model.diffusion_model.input_blocks[1][0]
        handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
        try:
            for conditioning in (node_helpers.conditioning_set_values(positive, half), positive):
                rig.run(model, conditioning, negative, noise=noise, steps=1, cfg=1.0)
        finally:
            handle.remove()
        assert [list(x.shape[-2:]) for x in seen] == [[8, 4], [8, 8]]
        # The convolution of the half sees zeros beyond its left edge, so the first column differs.
        assert torch.allclose(seen[0][..., 1:], seen[1][..., 5:], atol=1e-4)

    def test_an_area_for_one_of_two_prompts(self, rig, adapted):
        import node_helpers

        positive, negative = rig.wired()
        half = node_helpers.conditioning_set_values(
            rig.wired(**rig.subject(seed=100))[0], {"area": (8, 4, 0, 4), "strength": 1.0, "set_area_to_bounds": False}
        )
        out, plain = rig.run(adapted, positive + half, negative), rig.run(adapted, positive, negative)
        assert torch.isfinite(out).all() and rig.difference(out, plain) > 1e-3

    def test_concatenated_prompts_keep_the_subject(self, rig, adapted):
        import nodes

        positive, negative = rig.wired()
        joined = nodes.ConditioningConcat().concat(positive, rig.text(5))[0]
        assert joined[0][0].shape[1] == 154
        out = rig.run(adapted, joined, negative)
        plain = rig.run(adapted, nodes.ConditioningConcat().concat(rig.prompts()[0], rig.text(5))[0], negative)
        assert rig.difference(out, plain) > 1e-3


@pytest.mark.parametrize("adapter_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_adapters_and_bases_of_different_dtypes(rig, full, adapter_dtype, base_dtype):
    """The result is that of full precision, up to the rounding of the coarser of the two."""
    base = rig.tiny_model(dtype=base_dtype)
    loaded = rig.adapter(base, rig.adapter_weights(base, dtype=adapter_dtype))
    assert next(loaded.patcher.model.parameters()).dtype == adapter_dtype
    out = rig.run(rig.apply_adapter(base, loaded, rig.PartStrengths()), *rig.wired())
    coarse = torch.bfloat16 in (adapter_dtype, base_dtype)
    fine = adapter_dtype == base_dtype == torch.float32
    assert rig.difference(out, full) < (1e-6 if fine else 0.15 if coarse else 0.03)


def test_a_half_precision_base_is_computed_in_full_precision_where_core_does(rig, full):
    """An fp16 base on a device without fp16 arithmetic: weights stay fp16 and are cast at use, those of the adapter too."""
    base = rig.tiny_model(dtype=torch.float16, compute=torch.float32)
    loaded = rig.adapter(base, rig.adapter_weights(base, dtype=torch.float16))
    assert rig.difference(rig.run(rig.apply_adapter(base, loaded, rig.PartStrengths()), *rig.wired()), full) < 0.03
