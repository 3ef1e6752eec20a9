"""The adapter's runs against runs that they must equal: the stock sampler, the plain model, other ways to batch."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_our_sampler_equals_ksampler(rig, base, denoise):
    import nodes

    from magdiff_core.host.sampling import sample

    model = rig.adapted(base)
    positive, negative = rig.wired()
    latent = {"samples": rig.random(rig.FRAMES, 4, 8, 8, seed=5), "batch_index": [3, 0, 1, 2], "note": "kept"}
    ours = sample(model, positive, negative, latent, 7, 4, 7.5, denoise)
    stock = nodes.KSampler().sample(model, 7, 4, 7.5, "ddim", "ddim_uniform", positive, negative, latent, denoise)[0]
    assert torch.equal(ours["samples"], stock["samples"])
    assert ours.keys() == stock.keys()


def test_our_sampler_honours_a_noise_mask_as_ksampler_does(rig, base):
    import nodes

    from magdiff_core.host.sampling import sample

    model = rig.adapted(base)
    positive, negative = rig.wired()
    where = torch.zeros(rig.FRAMES, 64, 64)
    where[:, :32] = 1.0
    latent = {"samples": rig.random(rig.FRAMES, 4, 8, 8, seed=5), "noise_mask": where}
    ours = sample(model, positive, negative, latent, 7, 3, 7.5, 1.0)
    stock = nodes.KSampler().sample(model, 7, 3, 7.5, "ddim", "ddim_uniform", positive, negative, latent, 1.0)[0]
    assert torch.equal(ours["samples"], stock["samples"])


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m", "heun"])
def test_all_strengths_zero_is_exactly_the_plain_model(rig, base, sampler):
    off = rig.adapted(base, 0.0, 0.0, 0.0, 0.0)
    expected = rig.run(base, *rig.prompts(), sampler=sampler)
    assert torch.equal(rig.run(off, *rig.wired(), sampler=sampler), expected)


def test_adapter_without_a_subject_in_the_conditioning_and_no_temporal_part_keeps_only_the_text_weight(rig, base, vanilla):
    # With the image stream on, the learned text weight acts even without a picture; with it off nothing does.
    assert torch.equal(rig.run(rig.adapted(base, 0.0, 0.0, 1.0), *rig.prompts()), vanilla)
    assert not torch.equal(rig.run(rig.adapted(base, 0.0, 1.0, 1.0), *rig.prompts()), vanilla)


def test_parts_at_zero_are_exactly_off(rig, base, vanilla):
    """With the temporal part off: image stream 0 leaves only the pyramid, pyramid 0 only the image stream, both 0 nothing."""
    everything = rig.wired()
    no_tokens = rig.wired(latents=rig.subject()["latents"])
    no_latents = rig.wired(tokens=rig.subject()["tokens"])
    for payload in (everything, no_tokens, no_latents):
        assert torch.equal(rig.run(rig.adapted(base, 0.0, 0.0, 0.0), *payload), vanilla)
    pyramid_only = rig.run(rig.adapted(base, 0.0, 0.0, 1.0), *everything)
    assert torch.equal(rig.run(rig.adapted(base, 0.0, 0.0, 1.0), *no_tokens), pyramid_only)
    image_only = rig.run(rig.adapted(base, 0.0, 1.0, 0.0), *everything)
    assert torch.equal(rig.run(rig.adapted(base, 0.0, 1.0, 0.0), *no_latents), image_only)
    assert torch.equal(rig.run(rig.adapted(base, 0.0, 0.0, 1.0), *no_latents), vanilla)
    assert not torch.equal(pyramid_only, vanilla) and not torch.equal(image_only, vanilla)


@pytest.mark.parametrize("part", ["temporal", "image_stream", "pyramid"])
def test_every_part_acts_and_its_strength_scales_it(rig, base, full, part):
    half = rig.run(rig.adapted(base, **{part: 0.5}), *rig.wired())
    off = rig.run(rig.adapted(base, **{part: 0.0}), *rig.wired())
    for a, b in ((half, full), (off, full), (half, off)):
        assert rig.difference(a, b) > 1e-3


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_part_strengths_scale_what_the_parts_add(rig, base, p):
    """Strength p equals full strength of an adapter whose last layers, or learned weights, are scaled by hand."""

    def scaled(key, value):
        if key.startswith("temporal.") and (".layers.3.conv." in key or ".to_out." in key):
            return p * value
        if key.endswith("alpha_text"):
            return 1 + p * (value - 1)
        if key.endswith("alpha_image") or key == "hfa.conv_z.weight":
            return p * value
        return value

    by_hand = rig.adapter(base, {key: scaled(key, value) for key, value in rig.adapter_weights(base).items()})
    expected = rig.run(rig.apply_adapter(base, by_hand, rig.PartStrengths()), *rig.wired())
    assert rig.difference(rig.run(rig.adapted(base, p, p, p), *rig.wired()), expected) < 1e-5


@pytest.mark.parametrize("mode", ["generate", "edit"])
def test_the_first_convolution_sees_noise_and_scaled_subject_side_by_side(rig, base, mode):
    """After the first layer: one convolution over 8 channels, the subject latent scaled like the model's (0.18215)."""
    weights = {key: value for key, value in rig.adapter_weights(base).items() if not key.startswith("hfa.level.")}
    model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths(0.0, 0.0, 1.0))
    latents = rig.latents(mode=mode)
    unet, seen = model.model.diffusion_model, []
    handles = [
        unet.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone())),
        unet.input_blocks[1][0].register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone())),
    ]
    try:
        rig.run(model, *rig.wired(latents=latents), steps=1)
    finally:
        for handle in handles:
            handle.remove()
    z_n, h = seen
    z_s = 0.18215 * latents.levels[0][0]
    if mode == "generate":
        z_s = torch.cat((z_s[:1], z_s[1:].expand(rig.FRAMES - 1, -1, -1, -1)))
    conv_in = unet.input_blocks[0][0]
    wide = torch.cat((conv_in.weight, weights["hfa.conv_z.weight"]), 1)
    expected = torch.nn.functional.conv2d(torch.cat((z_n, z_s.repeat(2, 1, 1, 1)), 1), wide, conv_in.bias, padding=1)
    assert rig.difference(h, expected) < 1e-5


@pytest.mark.parametrize("mode", ["generate", "edit"])
def test_cross_attention_reads_the_tokens_of_the_whole_clip(rig, base, mode):
    """One layer by hand: text and image streams of eq. 4; every frame sees the image tokens of all frames."""
    model = rig.adapted(base, temporal=0.0, pyramid=0.0)
    parts = model.get_additional_models_with_key("magdiff")[0].model
    site = "middle_block.1.transformer_blocks.0"
    block = model.model.diffusion_model.get_submodule(site)
    tokens = rig.subject(mode=mode)["tokens"]
    seen = {}
    handles = [
        block.norm2.register_forward_hook(lambda _module, _args, out: seen.update(n=out.clone())),
        block.attn2.to_out.register_forward_pre_hook(lambda _module, args: seen.update(out=args[0].clone())),
    ]
    positive, negative = rig.wired(tokens=tokens)
    try:
        rig.run(model, positive, negative, steps=1, cfg=1.0)
    finally:
        for handle in handles:
            handle.remove()

    def attention(q, k, v):
        q, k, v = (t.unflatten(-1, (block.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    q = block.attn2.to_q(seen["n"])
    text = positive[0][0].expand(rig.FRAMES, -1, -1)
    image = parts.projector(tokens.layers["last"][0])
    # One subject and black frames, or one entry a frame; the black entry of editing is not used.
    order = [0] + [1] * (rig.FRAMES - 1) if mode == "generate" else list(range(rig.FRAMES))
    image = image[order].flatten(0, 1).expand(rig.FRAMES, -1, -1)
    stream = parts.apa.find(site)
    expected = stream.alpha_text * attention(q, block.attn2.to_k(text), block.attn2.to_v(text))
    expected = expected + stream.alpha_image * attention(q, stream.to_k_image(image), stream.to_v_image(image))
    assert rig.difference(seen["out"], expected) < 1e-5


def test_zero_initialised_parts_are_the_plain_model(rig, base, vanilla):
    """A subject branch of zeros, and an image stream of zeros with text weight 1, as training starts."""
    weights = rig.adapter_weights(base)
    for key, value in weights.items():
        if key == "hfa.conv_z.weight" or key.endswith(("to_v_image.weight", "alpha_image")):
            value.zero_()
        if key.endswith("alpha_text"):
            value.fill_(1.0)
    model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths(temporal=0.0))
    assert rig.difference(rig.run(model, *rig.wired()), vanilla) < 1e-5


def test_zero_initialised_temporal_residuals_leave_only_norms_and_positions(rig, base):
    """Temp-Conv and Temp-Attn of zeros: the same as strength 0+ of the temporal part."""
    weights = rig.adapter_weights(base)
    for key, value in weights.items():
        if key.startswith("temporal.") and key.rsplit(".", 2)[-2] in ("conv", "to_out"):
            value.zero_()
    zeros = rig.run(rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths()), *rig.wired())
    almost_off = rig.run(rig.adapted(base, temporal=1e-9), *rig.wired())
    assert rig.difference(zeros, almost_off) < 1e-5


def test_pyramid_levels_at_zero_equal_an_adapter_without_pyramid(rig, base):
    weights = rig.adapter_weights(base)
    for key, value in weights.items():
        if key.startswith("hfa.level.") and ".conv_out." in key:
            value.zero_()
    zeros = rig.run(rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths()), *rig.wired())
    flat = rig.adapter(base, {k: v for k, v in weights.items() if not k.startswith("hfa.level.")})
    without = rig.run(rig.apply_adapter(base, flat, rig.PartStrengths()), *rig.wired())
    assert torch.equal(zeros, without)


def test_cond_and_uncond_run_batched_and_agree_with_runs_apart(rig, base, full, monkeypatch):
    model, wired = rig.adapted(base), rig.wired()
    with rig.unet_calls(model) as batched:
        assert torch.equal(rig.run(model, *wired), full)
    assert batched == [([1, 0], 2 * rig.FRAMES)] * 2
    # One batch of frames fits, two do not.
    monkeypatch.setattr(model.model, "memory_required", lambda shape, cond_shapes=None: 0 if shape[0] <= rig.FRAMES else 1e30)
    with rig.unet_calls(model) as apart:
        separate = rig.run(model, *wired)
    assert [sides for sides, _ in apart] == [[1], [0]] * 2
    assert rig.difference(separate, full) < rig.BATCHING


def test_equal_payloads_under_different_keys_run_apart_and_agree(rig, base, full):
    positive, _ = rig.wired()
    _, negative = rig.wired()
    model = rig.adapted(base)
    with rig.unet_calls(model) as calls:
        apart = rig.run(model, positive, negative)
    assert sorted(sides for sides, _ in calls) == [[0], [0], [1], [1]]
    assert rig.difference(apart, full) < rig.BATCHING


def test_cfg_1_runs_the_positive_side_only(rig, base):
    model = rig.adapted(base)
    positive, negative = rig.wired()
    with rig.unet_calls(model) as calls:
        out = rig.run(model, positive, negative, cfg=1.0)
    assert calls == [([0], rig.FRAMES)] * 2
    assert torch.isfinite(out).all()
    # The negative does not act at CFG 1.
    assert torch.equal(out, rig.run(model, positive, rig.text(99), cfg=1.0))


def test_a_negative_without_our_data_works_in_two_passes(rig, base, full):
    model = rig.adapted(base)
    positive, _ = rig.wired()
    _, plain = rig.prompts()
    with rig.unet_calls(model) as calls:
        out = rig.run(model, positive, plain)
    assert sorted(sides for sides, _ in calls) == [[0], [0], [1], [1]]
    assert torch.isfinite(out).all() and not torch.equal(out, full)


def test_a_negative_with_another_subject_works(rig, base, full):
    model = rig.adapted(base)
    positive, negative = rig.wired()
    other = rig.attach(rig.prompts()[1], **rig.subject(seed=100))
    out = rig.run(model, positive, other)
    assert not torch.equal(out, rig.run(model, positive, negative))


def test_a_longer_prompt_on_one_side(rig, base):
    """154 text tokens against 77 batch (core repeats the shorter one) and equal the two passes."""
    model, payload = rig.adapted(base), rig.subject()
    positive = rig.attach(rig.text(31, 154), **payload)
    negative = rig.attach(rig.text(32, 77), **payload)
    with rig.unet_calls(model) as calls:
        together = rig.run(model, positive, negative)
    assert [sides for sides, _ in calls] == [[1, 0]] * 2
    apart = rig.run(model, positive, rig.attach(rig.text(32, 77), **rig.subject()))
    assert rig.difference(together, apart) < rig.BATCHING


def test_a_prompt_of_its_own_for_each_frame(rig, base):
    """Text [F, 77, D]: not folded into one row a clip; equal rows give what one row gives."""
    model, payload = rig.adapted(base), rig.subject()
    one = rig.text(31)
    same = [[one[0][0].repeat(rig.FRAMES, 1, 1), {}]]
    different = [[rig.random(rig.FRAMES, 77, one[0][0].shape[-1], seed=7), {}]]
    negative = rig.attach(rig.text(32), **payload)
    expected = rig.run(model, rig.attach(one, **payload), negative)
    assert torch.equal(rig.run(model, rig.attach(same, **payload), negative), expected)
    varied = rig.run(model, rig.attach(different, **payload), negative)
    first = [[different[0][0][:1], {}]]
    assert rig.difference(varied, rig.run(model, rig.attach(first, **payload), negative)) > 1e-3


def test_alpha_sliders_multiply_the_learned_weights(rig, base):
    """Sliders (a, b) equal an adapter whose learned weights are a and b times as large."""
    weights = rig.adapter_weights(base)
    payload = rig.subject(alphas=rig.AlphaSettings(0.5, 2.0))
    slid = rig.run(rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths()), *rig.wired(**payload))
    scaled = {
        key: value * (0.5 if key.endswith("alpha_text") else 2.0) if key.endswith(("alpha_text", "alpha_image")) else value
        for key, value in weights.items()
    }
    learned = rig.run(
        rig.apply_adapter(base, rig.adapter(base, scaled), rig.PartStrengths()),
        *rig.wired(**{**payload, "alphas": rig.AlphaSettings()}),
    )
    assert rig.difference(slid, learned) < 1e-5


def test_fixed_mode_equals_learned_weights_of_one(rig, base):
    weights = rig.adapter_weights(base)
    payload = rig.subject(alphas=rig.AlphaSettings(mode="fixed"))
    fixed = rig.run(rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths()), *rig.wired(**payload))
    ones = {k: torch.ones(1) if k.endswith(("alpha_text", "alpha_image")) else v for k, v in weights.items()}
    payload["alphas"] = rig.AlphaSettings()
    adaptive = rig.run(rig.apply_adapter(base, rig.adapter(base, ones), rig.PartStrengths()), *rig.wired(**payload))
    assert torch.equal(fixed, adaptive)


def test_sliders_act_only_inside_their_percent_range(rig, base):
    """Over the whole run = no range; a range that no step falls into = sliders at 1."""
    model, payload = rig.adapted(base), rig.subject()

    def with_alphas(*settings):
        return rig.run(model, *rig.wired(**{**payload, "alphas": rig.AlphaSettings(*settings)}), steps=4)

    plain, whole = with_alphas(), with_alphas(0.5, 2.0)
    first, last = with_alphas(0.5, 2.0, 0.0, 0.5), with_alphas(0.5, 2.0, 0.5, 1.0)
    assert torch.equal(with_alphas(1.0, 1.0, 0.0, 0.5), plain)
    assert torch.equal(with_alphas(0.5, 2.0, 0.999, 1.0), plain)
    for a, b in ((first, plain), (first, whole), (last, plain), (last, whole), (first, last)):
        assert rig.difference(a, b) > 1e-3


SHAPES = {
    "SD1.5: convolutions around the transformer, a fixed number of heads": {
        "use_linear_in_transformer": False, "num_heads": 4, "num_head_channels": -1, "legacy": False,
    },
    "three levels, two ResBlocks each, the last without attention": {
        "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2], "transformer_depth": [1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "transformers of two blocks": {
        "transformer_depth": [1, 2], "transformer_depth_output": [1, 1, 2, 2], "transformer_depth_middle": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_of_the_adapter_runs_on_bases_of_other_shapes(rig, shape):
    """Temporal layers once a call, image keys and values once a run; off it is the plain model."""
    base = rig.tiny_model(**SHAPES[shape])
    model = rig.adapted(base)
    parts = model.get_additional_models_with_key("magdiff")[0].model
    temporal = [parts.temporal.conv.find(site) for site in parts.temporal.conv.sites]
    temporal += [parts.temporal.attn.find(site) for site in parts.temporal.attn.sites]
    streams = [parts.apa.find(site) for site in parts.apa.sites]
    frozen = [parts.hfa.conv_z] + [layer for stream in streams for layer in (stream.to_k_image, stream.to_v_image)]
    with rig.calls_of(*temporal, *frozen) as counts:
        out = rig.run(model, *rig.wired(), steps=3)
    assert counts == [3] * len(temporal) + [1] * len(frozen)
    assert torch.isfinite(out).all()
    plain = rig.run(base, *rig.prompts())
    assert torch.equal(rig.run(rig.adapted(base, 0.0, 0.0, 0.0), *rig.wired()), plain)


def test_norms_by_frame_where_the_adapter_was_trained_so(rig, base, vanilla):
    """`clip_norm` off: temporal residuals of zeros on untouched ResBlocks are exactly the plain model."""
    weights = {key: value for key, value in rig.adapter_weights(base).items() if key.startswith("temporal.conv.")}
    for key, value in weights.items():
        if ".conv." in key.removeprefix("temporal.conv."):
            value.zero_()
    by_frame = rig.apply_adapter(base, rig.adapter(base, weights, clip_norm=False), rig.PartStrengths())
    assert torch.equal(rig.run(by_frame, *rig.prompts()), vanilla)
    over_the_clip = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
    assert rig.difference(rig.run(over_the_clip, *rig.prompts()), vanilla) > 1e-3
