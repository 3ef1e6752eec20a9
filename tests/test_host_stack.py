"""The adapter together with what users put on a model: LoRA, ControlNet, patches of other packs."""

from __future__ import annotations

import pytest
import torch

LORA_KEYS = (
    "input_blocks.0.0.weight",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "middle_block.0.in_layers.2.weight",
    "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0.weight",
    "out.2.weight",
)


def lora_file(rig, base) -> dict[str, torch.Tensor]:
    """A rank-2 LoRA in the layout that core reads, for the keys above."""
    state, lora = base.model.diffusion_model.state_dict(), {}
    for i, key in enumerate(LORA_KEYS):
        shape = state[key].shape
        name = f"diffusion_model.{key.removesuffix('.weight')}"
        lora[f"{name}.lora_up.weight"] = 0.3 * rig.random(shape[0], 2, *(1,) * (len(shape) - 2), seed=2 * i)
        lora[f"{name}.lora_down.weight"] = 0.3 * rig.random(2, *shape[1:], seed=2 * i + 1)
    return lora


def with_lora_by_hand(rig, base, strength):
    """A fresh base with up x down added to its weights."""
    model, lora = rig.tiny_model(), lora_file(rig, base)
    state = model.model.diffusion_model.state_dict()
    for key in LORA_KEYS:
        name = f"diffusion_model.{key.removesuffix('.weight')}"
        change = lora[f"{name}.lora_up.weight"].flatten(1) @ lora[f"{name}.lora_down.weight"].flatten(1)
        state[key] += strength * change.reshape(state[key].shape)
    return model


@pytest.mark.parametrize("order", ["lora first", "adapter first"])
def test_a_lora_on_the_base_acts_as_weights_changed_by_hand(rig, base, full, order):
    import comfy.sd

    lora = lora_file(rig, base)
    if order == "lora first":
        model = rig.adapted(comfy.sd.load_lora_for_models(base, None, lora, 0.8, 0.0)[0])
    else:
        model = comfy.sd.load_lora_for_models(rig.adapted(base), None, lora, 0.8, 0.0)[0]
    assert len(model.patches) == len(LORA_KEYS)
    out = rig.run(model, *rig.wired())
    expected = rig.run(rig.adapted(with_lora_by_hand(rig, base, 0.8)), *rig.wired())
    assert rig.difference(out, expected) < 1e-5
    assert rig.difference(out, full) > 1e-3
    assert rig.difference(out, rig.run(comfy.sd.load_lora_for_models(base, None, lora, 0.8, 0.0)[0], *rig.prompts())) > 1e-3


@pytest.fixture(scope="module")
def with_control(rig):
    """Adds a small random ControlNet of core's class to positive and negative, as Apply ControlNet does."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    import nodes
    from tiny import UNET, randomise

    torch.manual_seed(3)
    settings = {key: value for key, value in UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    settings["transformer_depth"] = list(settings["transformer_depth"])
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.manual_cast, **settings)
        randomise(network)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    hints = torch.rand(rig.FRAMES, 64, 64, 3, generator=rig.generator(8))

    def apply(positive, negative, hints=hints, strength=0.7):
        return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hints, strength, 0.0, 1.0)

    return apply


def test_a_controlnet_and_the_adapter_act_together(rig, base, adapted, full, with_control):
    wired = rig.wired()
    with rig.unet_calls(adapted) as calls:
        both = rig.run(adapted, *with_control(*wired))
    assert [sides for sides, _ in calls] == [[1, 0]] * 2
    control_only = rig.run(base, *with_control(*rig.prompts()))
    vanilla = rig.run(base, *rig.prompts())
    for other in (full, control_only, vanilla):
        assert rig.difference(both, other) > 1e-3
    off = rig.adapted(base, 0.0, 0.0, 0.0)
    assert torch.equal(rig.run(off, *with_control(*wired)), control_only)
    assert rig.difference(rig.run(adapted, *with_control(*wired, strength=1e-9)), full) < 1e-5


def test_controlnet_hints_belong_to_their_frames(rig, adapted, with_control):
    """Without layers that mix frames, another hint for frame 2 changes frame 2 alone."""
    hints = torch.rand(rig.FRAMES, 64, 64, 3, generator=rig.generator(8))
    changed = hints.clone()
    changed[2] = 1.0 - changed[2]
    model = rig.apply_adapter(adapted, rig.adapter(adapted), rig.PartStrengths(temporal=0.0))
    a, b = (rig.run(model, *with_control(*rig.wired(), hints=h)) for h in (hints, changed))
    assert (a - b).abs().flatten(1).amax(1).gt(1e-4).tolist() == [False, False, True, False]


def test_an_earlier_attn2_replacement_takes_the_place_of_the_text(rig, base, full):
    """A pack that computes plain attention changes nothing; one that doubles it is weighed like the text."""
    from comfy.ldm.modules.attention import optimized_attention

    class Theirs:
        def __init__(self, factor):
            self.factor, self.rows = factor, set()

        def __call__(self, q, k, v, extra_options):
            self.rows.add((q.shape[0], k.shape[0]))
            return self.factor * optimized_attention(q, k, v, extra_options["n_heads"])

    def with_theirs(theirs, **three):
        model = base.clone()
        model.set_model_attn2_replace(theirs, "middle", 0, **three)
        return rig.adapted(model)

    for three in ({}, {"transformer_index": 0}):
        plain = Theirs(1.0)
        assert rig.difference(rig.run(with_theirs(plain, **three), *rig.wired()), full) < rig.BATCHING
        # They get every row of text, as they would without us.
        assert plain.rows == {(2 * rig.FRAMES, 2 * rig.FRAMES)}
    doubled = rig.run(with_theirs(Theirs(2.0)), *rig.wired())
    weights = rig.adapter_weights(base)
    weights["apa.middle_block.1.transformer_blocks.0.alpha_text"] *= 2
    expected = rig.run(rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths()), *rig.wired())
    assert rig.difference(doubled, expected) < rig.BATCHING

    # Applied twice, theirs is still there; switched off, it is theirs alone.
    theirs = Theirs(2.0)
    twice = rig.apply_adapter(with_theirs(theirs), rig.adapter(base), rig.PartStrengths())
    assert torch.equal(rig.run(twice, *rig.wired()), doubled)
    off = rig.apply_adapter(twice, rig.adapter(base), rig.PartStrengths(0.0, 0.0, 0.0))
    assert theirs in off.model_options["transformer_options"]["patches_replace"]["attn2"].values()
    alone = base.clone()
    alone.set_model_attn2_replace(theirs, "middle", 0)
    assert torch.equal(rig.run(off, *rig.wired()), rig.run(alone, *rig.prompts()))


def test_a_later_replacement_of_one_block_takes_that_block_only(rig, base, adapted, full):
    from comfy.ldm.modules.attention import optimized_attention

    def theirs(q, k, v, extra_options):
        assert q.shape[0] == k.shape[0]
        return optimized_attention(q, k, v, extra_options["n_heads"])

    model = adapted.clone()
    model.set_model_attn2_replace(theirs, "middle", 0, 0)
    out = rig.run(model, *rig.wired())
    assert torch.isfinite(out).all() and rig.difference(out, full) > 1e-3


def test_another_packs_attn2_patch_sees_every_row_of_text(rig, base, full):
    seen = set()

    def theirs(n, context, value, extra_options):
        seen.add((n.shape[0], context.shape[0]))
        return n, context, value

    for order in ("before", "after"):
        model = base.clone()
        if order == "before":
            model.set_model_attn2_patch(theirs)
        model = rig.adapted(model)
        if order == "after":
            model.set_model_attn2_patch(theirs)
        seen.clear()
        assert rig.difference(rig.run(model, *rig.wired()), full) < rig.BATCHING
        assert seen == {(2 * rig.FRAMES, 2 * rig.FRAMES)}


def test_other_packs_patches_of_the_blocks_run_too(rig, base, full):
    model = base.clone()
    called = []
    model.set_model_input_block_patch(lambda h, options: called.append("input") or h)
    model.set_model_output_block_patch(lambda h, hsp, options: called.append("output") or (h, hsp))
    model.set_model_attn1_patch(lambda n, k, v, options: called.append("attn1") or (n, k, v))
    model.set_model_patch(lambda x, options: called.append("middle") or x, "middle_patch")
    assert torch.equal(rig.run(rig.adapted(model), *rig.wired()), full)
    assert set(called) == {"input", "output", "attn1", "middle"}


def test_other_guiders_and_samplers_work(rig, adapted, full):
    """SamplerCustomAdvanced with CFGGuider, as stock nodes wire it, gives what KSampler gives."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(adapted)
    guider.set_conds(*rig.wired())
    guider.set_cfg(7.5)
    sigmas = comfy.samplers.calculate_sigmas(adapted.get_model_object("model_sampling"), "ddim_uniform", 2)
    noise = rig.random(rig.FRAMES, 4, 8, 8, seed=1)
    out = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("ddim"), sigmas, disable_pbar=True, seed=1)
    assert torch.equal(out, full)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_easycache_before_or_after_the_adapter_caches_the_finished_output(rig, base, adapted, threshold):
    from comfy_extras.nodes_easycache import EasyCacheNode

    def cached(model):
        return EasyCacheNode.execute(model, threshold, 0.0, 1.0, False).args[0]

    wired = rig.wired()
    with rig.calls_of(base.model.diffusion_model.input_blocks[0][0]) as counts:
        after = rig.run(cached(adapted), *wired, steps=8)
        before = rig.run(rig.adapted(cached(base)), *wired, steps=8)
    assert torch.equal(after, before)
    if threshold == 0.0:
        assert counts == [16]
        assert torch.equal(after, rig.run(adapted, *wired, steps=8))
    else:
        assert counts[0] < 16
