"""APA for Wan: the weighed streams are those of the equation, the plain model stays what it is, and others' overrides run on."""

from __future__ import annotations

import pytest
import torch
import wan_model
from wan_model import BLOCKS, FRAMES, LATENT, PICTURE, PICTURE_TOKENS, SIDE, TEXT, TEXT_TOKENS

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def weights():
    return wan_model.weights()


@pytest.fixture(scope="module")
def base(comfy_session, weights):
    return wan_model.load(weights)


@pytest.fixture(scope="module")
def weighed(pack):
    """Applies the node with its defaults."""

    def weighed(model, alpha_text=1.0, alpha_image=1.0, start_percent=0.0, end_percent=1.0, first_block=0, last_block=-1):
        node = pack["MagDiffAPAForWan"]
        return node.execute(model, alpha_text, alpha_image, start_percent, end_percent, first_block, last_block).args[0]

    return weighed


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(pictures: int = 1, frames: int = FRAMES, side: int = SIDE, sigma: float = 0.7) -> dict[str, torch.Tensor]:
    """What a call of the network gets: two rows, as with CFG."""
    return {
        "latents": random(2, 36, frames, side, side, seed=1),
        "timestep": torch.full((2,), 1000 * sigma),
        "text": random(2, TEXT_TOKENS, TEXT, seed=2),
        "picture": random(2, pictures * PICTURE_TOKENS, PICTURE, seed=3),
    }


def call(model, latents, text, picture, timestep) -> torch.Tensor:
    """The network's own output through ComfyUI, with the patches of `model`."""
    import comfy.patcher_extension as extension

    sigma = timestep / 1000
    transformer_options = extension.copy_nested_dicts({**model.model_options["transformer_options"], "sigmas": sigma})
    extension.merge_nested_dicts(transformer_options.setdefault("wrappers", {}), model.wrappers, copy_dict1=False)
    noisy, beside = latents.split([LATENT, latents.shape[1] - LATENT], dim=1)
    denoised = model.model.apply_model(noisy, sigma, beside, text, None, transformer_options, clip_fea=picture)
    # what core makes of the output of a flow model: x - sigma * out
    return (noisy - denoised) / sigma[0]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < ROUNDING * b.abs().max())


@pytest.mark.parametrize("alphas", [(0.4, 1.7), (1.0, 0.0), (0.0, 1.0), (2.5, 1.0)])
def test_it_is_the_equation(base, weighed, weights, alphas):
    given = inputs()
    out = call(weighed(base, *alphas), **given)
    assert close(out, wan_model.forward(weights, **given, alpha_text=alphas[0], alpha_image=alphas[1]))
    assert not close(out, wan_model.forward(weights, **given))


def test_both_at_one_is_the_plain_model_bit_for_bit(base, weighed, weights):
    plain = call(base, **inputs())
    assert close(plain, wan_model.forward(weights, **inputs()))
    model = weighed(base)
    assert not model.wrappers.get("diffusion_model") and torch.equal(call(model, **inputs()), plain)
    # with the override at work: outside the range of percent both factors are 1
    resting = weighed(base, 0.3, 2.0, start_percent=0.8)
    assert torch.equal(call(resting, **inputs(sigma=0.95)), call(base, **inputs(sigma=0.95)))


def test_only_the_blocks_of_the_range(base, weighed, weights):
    given = inputs()
    for first, last in ((0, 0), (1, 2), (2, -1)):
        out = call(weighed(base, 0.5, 2.0, first_block=first, last_block=last), **given)
        blocks = range(first, (last if last >= 0 else BLOCKS - 1) + 1)
        assert close(out, wan_model.forward(weights, **given, alpha_text=0.5, alpha_image=2.0, blocks=blocks))
    for first, last in ((2, 1), (0, BLOCKS), (BLOCKS, -1)):
        with pytest.raises(ValueError, match=f"first_block {first} and last_block {last}: this model has blocks 0 to 2"):
            weighed(base, 0.5, 2.0, first_block=first, last_block=last)


def test_first_and_last_frame_with_514_tokens(comfy_session, weighed):
    weights = wan_model.weights(first_last=True)
    given = inputs(pictures=2)
    out = call(weighed(wan_model.load(weights), 0.6, 1.8), **given)
    assert close(out, wan_model.forward(weights, **given, alpha_text=0.6, alpha_image=1.8))


def test_a_clip_of_as_many_tokens_as_the_picture(base, weighed, weights):
    """Then self-attention and the picture's have the same shapes: the order tells them apart."""
    # 257 frames of 2 x 2 latents are 257 tokens
    given = inputs(frames=PICTURE_TOKENS, side=2)
    out = call(weighed(base, 0.4, 1.7), **given)
    assert close(out, wan_model.forward(weights, **given, alpha_text=0.4, alpha_image=1.7))


def test_another_override_does_the_work_and_is_weighed(base, weighed):
    """As a sage-attention node sets it: one before ours, and one that is put on the model after it."""
    import math

    def kernel(func, q, k, v, heads, **kwargs):
        seen.append(k.shape[1])
        q, k, v = (t.unflatten(-1, (heads, -1)).movedim(-2, 1) for t in (q, k, v))
        # not what attention is, so that it shows
        mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return (mixed + 0.1).movedim(1, -2).flatten(-2)

    def with_kernel(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = kernel
        return model

    seen = []
    alone = call(with_kernel(base), **inputs())
    before = call(weighed(with_kernel(base), 0.4, 1.7), **inputs())
    after = call(with_kernel(weighed(base, 0.4, 1.7)), **inputs())
    tokens = FRAMES * SIDE * SIDE // 4
    assert seen == [tokens, PICTURE_TOKENS, TEXT_TOKENS] * BLOCKS * 3
    assert torch.equal(before, after)
    assert not close(before, alone) and not close(before, call(weighed(base, 0.4, 1.7), **inputs()))
    assert torch.equal(call(weighed(with_kernel(base)), **inputs()), alone)


def test_an_attention_that_another_pack_puts_into_the_block_is_left_alone(base, weighed, weights):
    """A patch after self-attention that itself attends must not shift which attention is whose."""
    from comfy.ldm.modules.attention import optimized_attention

    def attend(args):
        x = args["x"]
        optimized_attention(x, x[:, :3], x[:, :3], heads=1, transformer_options=args["transformer_options"])
        return x

    model = weighed(base, 0.4, 1.7)
    model.set_model_patch(attend, "attn1_patch")
    assert close(call(model, **inputs()), wan_model.forward(weights, **inputs(), alpha_text=0.4, alpha_image=1.7))


def test_a_skipped_block_leaves_the_others_right(base, weighed, weights):
    """Skip layer guidance drops a block; the next one starts anew."""
    model = weighed(base, 0.4, 1.7)
    model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    without = {key.replace("blocks.2.", "blocks.1."): value for key, value in weights.items() if "blocks.1." not in key}
    assert close(call(model, **inputs()), wan_model.forward(without, **inputs(), alpha_text=0.4, alpha_image=1.7))


def test_applied_again_replaces_and_the_given_model_stays(base, weighed):
    plain = call(base, **inputs())
    first = weighed(base, 0.4, 1.7)
    once = call(first, **inputs())
    again = weighed(first, 2.0, 0.5)
    assert torch.equal(call(again, **inputs()), call(weighed(base, 2.0, 0.5), **inputs()))
    assert torch.equal(call(first, **inputs()), once)
    assert torch.equal(call(weighed(first), **inputs()), plain)
    assert torch.equal(call(base, **inputs()), plain)


def conditionings(picture: bool = True, negative_picture: bool = True):
    class Encoded:
        penultimate_hidden_states = random(1, PICTURE_TOKENS, PICTURE, seed=5)

    latents = {"concat_latent_image": random(1, LATENT, FRAMES, SIDE, SIDE, seed=6)}
    positive, negative = ([[random(1, TEXT_TOKENS, TEXT, seed=seed), dict(latents)]] for seed in (7, 8))
    if picture:
        positive[0][1]["clip_vision_output"] = Encoded
        if negative_picture:
            negative[0][1]["clip_vision_output"] = Encoded
    return positive, negative


def sample(model, positive, negative, steps=4, cfg=3.0, **options):
    import comfy.sample

    noise = random(1, LATENT, FRAMES, SIDE, SIDE, seed=9)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        positive,
        negative,
        torch.zeros_like(noise),
        seed=9,
        disable_pbar=True,
        **options,
    )


def test_it_runs_in_the_sampler_and_only_in_the_range_of_percent(base, weighed):
    wired = conditionings()
    plain = sample(base, *wired)
    whole = sample(weighed(base, 0.4, 1.7), *wired)
    assert not close(whole, plain)

    def steps_weighed(start, end):
        model = weighed(base, 0.4, 1.7, start, end)
        latents = []
        sample(model, *wired, callback=lambda step, x0, x, total: latents.append(x0))
        reference = []
        sample(base, *wired, callback=lambda step, x0, x, total: reference.append(x0))
        return [not torch.equal(a, b) for a, b in zip(latents, reference)]

    assert steps_weighed(0.0, 1.0) == [True] * 4
    assert steps_weighed(0.99, 1.0) == [False, False, False, False]
    assert steps_weighed(0.0, 0.1)[0]
    assert steps_weighed(0.3, 1.0)[0] is False and steps_weighed(0.3, 1.0)[-1]
    # a first step that was weighed, and then the plain model: what remains of it is that step alone
    assert not torch.equal(sample(weighed(base, 0.4, 1.7, 0.0, 0.1), *wired), whole)


def test_without_a_picture_it_warns_and_is_the_plain_model(base, weighed, caplog):
    wired = conditionings(picture=False)
    out = sample(weighed(base, 0.4, 1.7), *wired)
    assert "does nothing for the positive and negative conditioning: it has no clip_vision_output" in caplog.text
    assert torch.equal(out, sample(base, *wired))
    caplog.clear()
    out = sample(weighed(base, 0.4, 1.7), *conditionings(negative_picture=False))
    assert "does nothing for the negative conditioning" in caplog.text
    assert not close(out, sample(base, *conditionings(negative_picture=False)))
    caplog.clear()
    sample(weighed(base, 0.4, 1.7), *conditionings())
    assert "does nothing" not in caplog.text


def test_an_interrupted_run_leaves_nothing(base, weighed):
    import copy

    model = weighed(base, 0.4, 1.7)
    before = copy.copy(model.model_options["transformer_options"])
    whole = sample(model, *conditionings())

    def stop(step, *_):
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(model, *conditionings(), callback=stop)
    assert model.model_options["transformer_options"] == before
    assert torch.equal(sample(model, *conditionings()), whole)


def test_models_without_a_picture_stream_are_refused(comfy_session, weighed):
    import tiny

    text_only = wan_model.load(wan_model.weights(picture=False, concat=False))
    with pytest.raises(ValueError, match="no picture stream in its cross-attention: it is a text-to-video model"):
        weighed(text_only, 0.4, 1.7)
    latents_only = wan_model.load(wan_model.weights(picture=False))
    with pytest.raises(ValueError, match="only as latents beside the noise, as Wan 2.2 A14B does"):
        weighed(latents_only, 0.4, 1.7)
    with pytest.raises(ValueError, match="needs Wan 2.1 image-to-video, this MODEL is a UNetModel"):
        weighed(tiny.tiny_model(), 0.4, 1.7)


def test_values_out_of_range_are_refused(base, weighed):
    with pytest.raises(ValueError, match="alpha_image is 3.5: choose a number from 0 to 3"):
        weighed(base, 1.0, 3.5)
    with pytest.raises(ValueError, match="both 0"):
        weighed(base, 0.0, 0.0)
    with pytest.raises(ValueError, match="start must be below end"):
        weighed(base, 0.4, 1.7, 0.5, 0.5)
