"""Each known mistake, made on purpose, must show in the stored results.

The expected sizes (largest difference in the output) were measured on the other implementation, so they also prove that the
mistake made here is the one that was meant.
"""

from __future__ import annotations

import pytest
import torch
from parity_setting import CLOSE, Setting
from torch import nn

pytestmark = pytest.mark.usefixtures("comfy_session")


@pytest.fixture(scope="module", params=["magdiff", "vidrd"])
def either(request, comfy_session) -> Setting:
    from magdiff_core.host.parity import magdiff

    return Setting(request.param, magdiff)


@pytest.fixture(scope="module")
def magdiff(comfy_session) -> Setting:
    from magdiff_core.host.parity import magdiff

    return Setting("magdiff", magdiff)


def size(setting: Setting, of_magdiff: float, of_vidrd: float) -> float:
    return of_magdiff if setting.adapter.apa is not None else of_vidrd


def test_without_a_mistake(either):
    assert either.error() < 1e-4
    assert either.error(frames=1) < 1e-4


# --- APA --------------------------------------------------------------------------------------------------------------------


def one(weight):
    return torch.ones_like(weight)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param(lambda t, i: (i, t), 1.41, id="swapped"),
        pytest.param(lambda t, i: (one(t), one(i)), 1.10, id="ignored"),
        pytest.param(lambda t, i: (one(t), 1.5 * one(i)), 0.96, id="as initialised"),
        pytest.param(lambda t, i: (one(t), i), 0.78, id="text weight dropped"),
        pytest.param(lambda t, i: (t, 1 + torch.tanh(i)), 0.79, id="1 + tanh"),
    ],
)
def test_weights_of_the_streams(magdiff, monkeypatch, weights, expected):
    from magdiff_core.alignment.apa import ImageStream

    monkeypatch.setattr(ImageStream, "weights", lambda self, mode, strength, like: weights(self.alpha_text, self.alpha_image))
    assert magdiff.error() == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        pytest.param(lambda s: s.alpha_text + s.alpha_image, 0.68, id="scaled after to_out"),
        pytest.param(lambda s: s.alpha_text, 0.31, id="scaled by the text weight"),
    ],
)
def test_bias_of_to_out(magdiff, factor, expected):
    hooks = []
    for site in magdiff.adapter.apa.sites:
        stream, to_out = magdiff.adapter.apa.find(site), magdiff.unet.get_submodule(f"{site}.attn2.to_out.0")
        hooks.append(to_out.register_forward_hook(lambda layer, args, out, s=stream: out + layer.bias * (factor(s) - 1.0)))
    try:
        assert magdiff.error() == pytest.approx(expected, rel=CLOSE)
    finally:
        for hook in hooks:
            hook.remove()


def test_joint_softmax(magdiff, monkeypatch):
    from magdiff_core.host import blocks

    def joint(q, text, image, weight_text, weight_image, attention):
        k, v = (torch.cat((t.repeat_interleave(i.shape[0] // t.shape[0], 0), i), dim=1) for t, i in zip(text, image, strict=True))
        v = v * torch.cat((weight_text.expand(text[0].shape[1]), weight_image.expand(image[0].shape[1])))[:, None]
        return attention(q, k, v)

    monkeypatch.setattr(blocks, "dual_cross_attention", joint)
    assert magdiff.error() == pytest.approx(1.55, rel=CLOSE)


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        pytest.param(lambda x, frames: x.unflatten(1, (frames, -1)).flatten(0, 1), 0.92, id="per frame"),
        pytest.param(lambda x, frames: x.unflatten(1, (frames, -1))[:, 0], 0.74, id="frame 0 only"),
    ],
)
def test_tokens_are_not_clip_wide(magdiff, monkeypatch, pick, expected):
    from magdiff_core.host.call import Call

    right = Call.image_key_value

    def wrong(self, site, like):
        return tuple(pick(x, self.frames) for x in right(self, site, like))

    monkeypatch.setattr(Call, "image_key_value", wrong)
    assert magdiff.error() == pytest.approx(expected, rel=CLOSE)


def test_text_projections_for_image_tokens(magdiff, monkeypatch):
    from magdiff_core.alignment.apa import ImageStream

    sites = {id(magdiff.adapter.apa.find(site)): site for site in magdiff.adapter.apa.sites}

    def wrong(self, tokens):
        attention = magdiff.unet.get_submodule(sites[id(self)]).attn2
        return attention.to_k(tokens), attention.to_v(tokens)

    monkeypatch.setattr(ImageStream, "key_value", wrong)
    assert magdiff.error() == pytest.approx(1.78, rel=CLOSE)


def test_keys_and_values_swapped(magdiff, monkeypatch):
    from magdiff_core.alignment.apa import ImageStream

    right = ImageStream.key_value
    monkeypatch.setattr(ImageStream, "key_value", lambda self, tokens: right(self, tokens)[::-1])
    assert magdiff.error() > 0.1


# --- position and Temp-Attn -------------------------------------------------------------------------------------------------


def halves(pe):
    return torch.cat((pe[:, 0::2], pe[:, 1::2]), dim=1)


def cosine_first(pe):
    return pe.unflatten(1, (-1, 2)).flip(-1).flatten(1)


@pytest.mark.parametrize(
    ("positions", "of_magdiff", "of_vidrd"),
    [
        pytest.param(lambda right, f, c: torch.zeros(f, c), 0.85, 1.15, id="missing"),
        pytest.param(lambda right, f, c: halves(right(f, c)), 1.05, 1.44, id="halves"),
        pytest.param(lambda right, f, c: cosine_first(right(f, c)), 1.24, 1.46, id="cosine first"),
        pytest.param(lambda right, f, c: right(f + 1, c)[1:], 0.48, 0.76, id="from 1"),
    ],
)
def test_position(either, monkeypatch, positions, of_magdiff, of_vidrd):
    from magdiff_core.host import call

    right = call.frame_positions
    monkeypatch.setattr(call, "frame_positions", lambda f, c, device, dtype: positions(right, f, c).to(device, dtype))
    assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)


def temporal_increment(layer, x, frames, heads, positions, normed_positions=None) -> torch.Tensor:
    """What Temp-Attn adds to the stream `x` + `positions`; `normed_positions` are added after the norm."""
    if normed_positions is None:
        z = x + positions.repeat(x.shape[0] // frames, 1)[:, None]
        return layer(x, frames, heads, positions) - z
    norm, by_frame = layer.norm, normed_positions.repeat(x.shape[0] // frames, 1)[:, None]
    hook = norm.register_forward_hook(lambda module, args, out: out + by_frame)
    try:
        return layer(x, frames, heads, torch.zeros_like(normed_positions)) - x
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("after_norm", "of_magdiff", "of_vidrd"),
    [pytest.param(False, 0.81, 1.11, id="before the norm"), pytest.param(True, 1.05, 1.29, id="after the norm")],
)
def test_position_inside_attention_only(either, monkeypatch, after_norm, of_magdiff, of_vidrd):
    from magdiff_core.host import blocks

    def wrong(increment, extra_options):
        call = extra_options[blocks.CALL]
        stream, call.stream = call.stream, None
        layer = call.temporal.attn.find(blocks._transformer_block(extra_options))
        x = stream + increment
        positions = call.positions(stream.shape[-1], stream)
        heads = extra_options["n_heads"]
        return increment + temporal_increment(layer, x, call.frames, heads, positions, positions if after_norm else None)

    with patch(either, "attn2_output_patch", blocks.add_temp_attn, wrong):
        assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)


class patch:
    """Context in which one of the model's patches is another function."""

    def __init__(self, setting: Setting, kind: str, right, wrong):
        self.patches = setting.model.model_options["transformer_options"]["patches"][kind]
        self.index = next(i for i, entry in enumerate(self.patches) if entry is right or entry[1:] == (right,))
        self.entry = self.patches[self.index]
        self.patches[self.index] = wrong if self.entry is right else (self.entry[0], wrong)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.patches[self.index] = self.entry


def test_temp_attn_before_cross_attention(either):
    from magdiff_core.host import blocks

    def stream_with_temp_attn(x, extra_options):
        call = extra_options[blocks.CALL]
        layer = call.temporal.attn.find(blocks._transformer_block(extra_options))
        return layer(x, call.frames, extra_options["n_heads"], call.positions(x.shape[-1], x))

    right = (blocks.keep_stream, stream_with_temp_attn), (blocks.add_temp_attn, lambda increment, extra_options: increment)
    # middle_patch sees the stream before cross-attention, and what it returns goes on.
    with patch(either, "middle_patch", *right[0]), patch(either, "attn2_output_patch", *right[1]):
        assert either.error() == pytest.approx(size(either, 1.58, 1.43), rel=CLOSE)


@pytest.mark.parametrize(
    ("before", "of_magdiff", "of_vidrd"),
    [pytest.param(True, 1.88, 2.05, id="before self-attention"), pytest.param(False, 1.18, 1.26, id="after feed-forward")],
)
def test_temp_attn_outside_the_block(either, before, of_magdiff, of_vidrd):
    from magdiff_core.host import blocks
    from magdiff_core.temporal.position import frame_positions

    hooks = []
    for site in either.adapter.temporal.attn.sites:
        layer, block = either.adapter.temporal.attn.find(site), either.unet.get_submodule(site)

        def temp_attn(x, layer=layer, heads=block.n_heads):
            return layer(x, either.frames, heads, frame_positions(either.frames, x.shape[-1]))

        if before:
            hooks.append(block.register_forward_pre_hook(lambda module, args, f=temp_attn: (f(args[0]), *args[1:])))
        else:
            hooks.append(block.register_forward_hook(lambda module, args, out, f=temp_attn: f(out)))
    try:
        with patch(either, "attn2_output_patch", blocks.add_temp_attn, lambda increment, extra_options: increment):
            assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)
    finally:
        for hook in hooks:
            hook.remove()


def test_temp_attn_omitted(either, monkeypatch):
    from magdiff_core.temporal.temp_attn import TempAttn

    monkeypatch.setattr(TempAttn, "forward", lambda self, x, frames, heads, positions, strength=1.0: x)
    assert either.error() == pytest.approx(size(either, 1.38, 1.71), rel=CLOSE)


# --- Temp-Conv and norms ----------------------------------------------------------------------------------------------------


def per_frame(layer, x):
    """One Temp-Conv layer on `[clips, C, F, h * w]` with statistics of each frame."""
    clips, channels, frames, pixels = x.shape
    normed = layer.norm(x.transpose(1, 2).reshape(clips * frames, channels, pixels))
    normed = normed.reshape(clips, frames, channels, pixels).transpose(1, 2)
    return layer.conv(nn.functional.silu(normed))


def replicated(layer, x):
    h = nn.functional.silu(layer.norm(x))
    h = torch.cat((h[:, :, :1], h, h[:, :, -1:]), dim=2)
    return nn.functional.conv2d(h, layer.conv.weight, layer.conv.bias)


@pytest.mark.parametrize(
    ("forward", "of_magdiff", "of_vidrd"),
    [pytest.param(per_frame, 0.77, 0.88, id="statistics per frame"), pytest.param(replicated, 1.33, 1.51, id="replicated ends")],
)
def test_layers_of_temp_conv(either, monkeypatch, forward, of_magdiff, of_vidrd):
    from magdiff_core.temporal.temp_conv import TempConvLayer

    monkeypatch.setattr(TempConvLayer, "forward", forward)
    assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)


@pytest.mark.parametrize(
    ("wrong", "of_magdiff", "of_vidrd"),
    [pytest.param(lambda x, y: x, 1.54, 1.48, id="omitted"), pytest.param(lambda x, y: y - x, 2.41, 2.25, id="no residual")],
)
def test_sum_of_temp_conv(either, monkeypatch, wrong, of_magdiff, of_vidrd):
    from magdiff_core.temporal.temp_conv import TempConv

    right = TempConv.forward
    monkeypatch.setattr(TempConv, "forward", lambda self, x, frames, strength=1.0: wrong(x, right(self, x, frames)))
    assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)


def test_temp_conv_after_the_transformer(either):
    from comfy.ldm.modules.attention import SpatialTransformer

    from magdiff_core.temporal.temp_conv import TempConv

    right, hooks, waiting = TempConv.forward, [], []
    sites = {id(either.adapter.temporal.conv.find(site)): site for site in either.adapter.temporal.conv.sites}

    def wait(self, x, frames, strength=1.0):
        block = either.unet.get_submodule(sites[id(self)].rpartition(".")[0])
        following = int(sites[id(self)].rpartition(".")[2]) + 1
        if following < len(block) and isinstance(block[following], SpatialTransformer):
            waiting.append(self)
            return x
        return right(self, x, frames)

    for layer in either.unet.modules():
        if isinstance(layer, SpatialTransformer):
            hooks.append(layer.register_forward_hook(lambda module, args, out: right(waiting.pop(), out, either.frames)))
    try:
        with pytest.MonkeyPatch.context() as context:
            context.setattr(TempConv, "forward", wait)
            assert either.error() == pytest.approx(size(either, 1.57, 1.52), rel=0.05)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("modules", "of_magdiff", "of_vidrd"),
    [
        pytest.param(("blocks",), 0.48, 0.49, id="ResBlocks"),
        pytest.param(("wrappers",), 0.20, 0.30, id="last norm"),
        pytest.param(("blocks", "wrappers"), 0.51, 0.57, id="both"),
    ],
)
def test_norm_per_frame(either, monkeypatch, modules, of_magdiff, of_vidrd):
    import importlib

    for name in modules:
        module = importlib.import_module(f"magdiff_core.host.{name}")
        monkeypatch.setattr(module, "clip_group_norm", lambda norm, x, frames: norm(x))
    assert either.error() == pytest.approx(size(either, of_magdiff, of_vidrd), rel=CLOSE)


def test_norm_of_transformers_over_the_clip(either, monkeypatch):
    from comfy.ldm.modules.attention import SpatialTransformer

    from magdiff_core.temporal.clip_norm import clip_group_norm

    for layer in either.unet.modules():
        if isinstance(layer, SpatialTransformer):
            right = layer.norm.forward
            monkeypatch.setattr(layer.norm, "forward", lambda x, f=right: clip_group_norm(f, x, either.frames))
    assert either.error() == pytest.approx(0.96, rel=CLOSE)


# --- inputs -----------------------------------------------------------------------------------------------------------------


def test_frames_reversed(either):
    assert either.error(latent=either.latent.flip(0)) > 1.0


def test_subject_unscaled(magdiff, monkeypatch):
    monkeypatch.setattr(magdiff.model.model, "process_latent_in", lambda latent: latent)
    assert magdiff.error() == pytest.approx(1.78, rel=CLOSE)


def test_subject_before_noise(magdiff, monkeypatch):
    conv_in, conv_z = magdiff.unet.input_blocks[0][0], magdiff.adapter.hfa.conv_z
    weights = conv_in.weight, conv_z.weight
    monkeypatch.setitem(conv_in._parameters, "weight", weights[1])
    monkeypatch.setitem(conv_z._parameters, "weight", weights[0])
    assert magdiff.error() == pytest.approx(3.02, rel=CLOSE)


def test_timestep_one_early(either):
    either.timestep -= 1
    try:
        assert either.error() == pytest.approx(size(either, 0.036, 0.041), rel=CLOSE)
    finally:
        either.timestep += 1


def test_gelu_by_tanh(either, monkeypatch):
    from comfy.ldm.modules import attention

    def wrong(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * nn.functional.gelu(gate, approximate="tanh")

    monkeypatch.setattr(attention.GEGLU, "forward", wrong)
    assert either.error() == pytest.approx(size(either, 3.8e-4, 5.3e-4), rel=CLOSE)


# --- one frame --------------------------------------------------------------------------------------------------------------


def test_position_of_a_single_frame_omitted(magdiff, monkeypatch):
    from magdiff_core.host.call import Call

    monkeypatch.setattr(Call, "positions", lambda self, channels, like: torch.zeros(self.frames, channels))
    assert magdiff.error(frames=1) == pytest.approx(0.66, rel=CLOSE)


def test_temp_conv_of_a_single_frame_not_skipped(magdiff, monkeypatch):
    from magdiff_core.temporal import temp_conv

    def wrong(self, x, frames, strength=1.0):
        h = x.flatten(2).unsqueeze(2)
        for layer in self.layers:
            h = layer(h)
        return x + h.reshape(x.shape)

    monkeypatch.setattr(temp_conv.TempConv, "forward", wrong)
    assert magdiff.error(frames=1) == pytest.approx(1.13, rel=CLOSE)


# --- guidance ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "expected"), [("tokens", 13.6), ("latents", 9.4)])
def test_negative_without_the_subject(magdiff, part, expected):
    from magdiff_core.host.conds import SubjectLatents, SubjectTokens, attach, attached

    positive, negative = magdiff.conditionings()
    right = attached(negative[0][1]["model_conds"])[part]
    if part == "latents":
        negative = attach(negative, latents=SubjectLatents((torch.zeros_like(right.levels[0]),), right.frames, right.mode))
    else:
        # Zero tokens, not tokens of a zero picture: the projector is out of the way for this one.
        negative = attach(negative, tokens=SubjectTokens({"last": torch.zeros_like(right.layers["last"])}, right.black_entry))
        tokens_of = magdiff.adapter.projector.register_forward_hook(
            lambda module, args, out: out if args[0].any() else torch.zeros_like(out)
        )
    error = magdiff.guided_error((positive, negative))
    if part == "tokens":
        tokens_of.remove()
    assert error == pytest.approx(expected, rel=CLOSE)


# --- Resampler --------------------------------------------------------------------------------------------------------------


def resampled(setting: Setting) -> float:
    with torch.inference_mode():
        tokens = setting.adapter.projector(setting.fixture.inputs["clip_tokens"])
    return float((tokens - setting.fixture.stored["res.tokens"]).abs().max())


def test_resampler_without_a_mistake(magdiff):
    assert resampled(magdiff) < 1e-4


def test_resampler_without_its_last_norm(magdiff, monkeypatch):
    monkeypatch.setitem(magdiff.adapter.projector._modules, "norm_out", nn.Identity())
    assert resampled(magdiff) == pytest.approx(2.62, rel=CLOSE)


def test_resampler_norms_swapped(magdiff, monkeypatch):
    for attention, _ in magdiff.adapter.projector.layers:
        first, second = attention.norm1, attention.norm2
        monkeypatch.setitem(attention._modules, "norm1", second)
        monkeypatch.setitem(attention._modules, "norm2", first)
    assert resampled(magdiff) == pytest.approx(1.05, rel=CLOSE)


def test_resampler_keys_and_values_swapped(magdiff, monkeypatch):
    for attention, _ in magdiff.adapter.projector.layers:
        right = attention.to_kv.forward
        monkeypatch.setattr(attention.to_kv, "forward", lambda x, f=right: torch.cat(f(x).chunk(2, dim=-1)[::-1], dim=-1))
    assert resampled(magdiff) == pytest.approx(2.78, rel=CLOSE)


def test_resampler_reads_patches_only(magdiff, monkeypatch):
    queries = magdiff.adapter.projector.latents.shape[1]
    for attention, _ in magdiff.adapter.projector.layers:
        right = attention.to_kv.forward
        monkeypatch.setattr(attention.to_kv, "forward", lambda x, f=right: f(x[:, :-queries]))
    assert resampled(magdiff) == pytest.approx(2.42, rel=CLOSE)


# --- eps, too small to show in the output -----------------------------------------------------------------------------------


def test_eps_of_norms(magdiff):
    from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    for layer in magdiff.unet.modules():
        if isinstance(layer, ResBlock):
            assert layer.in_layers[0].eps == layer.out_layers[0].eps == 1e-5
        if isinstance(layer, SpatialTransformer):
            assert layer.norm.eps == 1e-6
        if isinstance(layer, BasicTransformerBlock):
            assert {layer.norm1.eps, layer.norm2.eps, layer.norm3.eps} == {1e-5}
    assert magdiff.unet.out[0].eps == 1e-5
    ours = [layer for layer in magdiff.adapter.modules() if isinstance(layer, (nn.GroupNorm, nn.LayerNorm))]
    assert len(ours) > 50 and {layer.eps for layer in ours} == {1e-5}
    assert {layer.num_groups for layer in ours if isinstance(layer, nn.GroupNorm)} == {32}
