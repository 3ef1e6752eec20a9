"""DynamiCrafter: each known mistake, made on purpose, must show in the stored results.

The expected sizes (largest difference in the output) were measured on the other implementation, so they also prove that the
mistake made here is the one that was meant.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from parity_setting import CLOSE, Setting
from torch import nn

pytestmark = pytest.mark.usefixtures("comfy_session")


@pytest.fixture(scope="module")
def setting(comfy_session) -> Setting:
    from magdiff_core.host.parity import dynamicrafter

    return Setting("dynamicrafter", dynamicrafter)


@pytest.fixture
def config(setting, monkeypatch):
    """Change the adapter's configuration for one test."""

    def change(**changes) -> None:
        monkeypatch.setattr(setting.adapter, "config", dataclasses.replace(setting.adapter.config, **changes))

    return change


def test_without_a_mistake(setting):
    assert setting.error() < 1e-4
    assert setting.guided_error() < 1e-3


# --- image stream -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        pytest.param(lambda w: torch.ones_like(w), 0.63, id="ignored"),
        pytest.param(lambda w: w - 1.0, 0.86, id="tanh without 1"),
        pytest.param(lambda w: 1.0 + torch.atanh(w - 1.0), 0.22, id="1 + alpha"),
    ],
)
def test_learned_weight(setting, monkeypatch, weight, expected):
    for site in setting.adapter.apa.sites:
        stream = setting.adapter.apa.find(site)
        monkeypatch.setitem(stream._parameters, "alpha_image", nn.Parameter(weight(stream.alpha_image), requires_grad=False))
    assert setting.error() == pytest.approx(expected, rel=CLOSE)


def test_tokens_of_all_frames_for_every_frame(setting, config):
    config(tokens_per_frame=0)
    assert setting.error() == pytest.approx(0.72, rel=CLOSE)


def test_tokens_of_frames_reversed(setting, monkeypatch):
    from magdiff_core.host.call import Call

    right = Call.image_key_value

    def wrong(self, site, like):
        return tuple(x.unflatten(0, (self.clips, self.frames)).flip(1).flatten(0, 1) for x in right(self, site, like))

    monkeypatch.setattr(Call, "image_key_value", wrong)
    assert setting.error() == pytest.approx(1.14, rel=CLOSE)


def test_negative_reads_the_picture(setting, config, monkeypatch):
    from magdiff_core.host.call import Call

    right = Call.image_key_value

    def wrong(self, site, like):
        monkeypatch.setattr(self, "negative", ())
        return right(self, site, like)

    monkeypatch.setattr(Call, "image_key_value", wrong)
    assert setting.guided_error() == pytest.approx(1.63, rel=CLOSE)


def test_negative_reads_zero_tokens(setting):
    def wrong(module, args, out):
        return torch.stack((out[0], torch.zeros_like(out[1])))

    hook = setting.adapter.projector.register_forward_hook(wrong)
    try:
        assert setting.guided_error() == pytest.approx(6.0, rel=CLOSE)
    finally:
        hook.remove()


# --- layers along time ------------------------------------------------------------------------------------------------------


def test_norms_of_temp_conv_per_frame(setting, monkeypatch):
    from magdiff_core.temporal.temp_conv import TempConvLayer

    def wrong(layer, x):
        clips, channels, frames, pixels = x.shape
        normed = layer.norm(x.transpose(1, 2).reshape(clips * frames, channels, pixels))
        return layer.conv(nn.functional.silu(normed.reshape(clips, frames, channels, pixels).transpose(1, 2)))

    monkeypatch.setattr(TempConvLayer, "forward", wrong)
    assert setting.error() == pytest.approx(0.36, rel=CLOSE)


def transformers(setting: Setting, first: bool = True) -> list[nn.Module]:
    tree = setting.adapter.temporal.transformer
    return [tree.find(site) for site in tree.sites if first or site != "input_blocks.0.0"]


def test_norm_of_temporal_transformers_per_frame(setting, monkeypatch):
    def wrong(norm):
        def forward(x):
            return (
                nn.functional.group_norm(x.transpose(1, 2).flatten(0, 1), 32, norm.weight, norm.bias, norm.eps)
                .unflatten(0, (x.shape[0], x.shape[2]))
                .transpose(1, 2)
            )

        return forward

    for layer in transformers(setting):
        monkeypatch.setattr(layer.norm, "forward", wrong(layer.norm))
    assert setting.error() == pytest.approx(0.39, rel=CLOSE)


def test_norms_of_res_blocks_over_the_clip(setting, config):
    config(clip_norm=True)
    assert setting.error() == pytest.approx(0.27, rel=CLOSE)


def test_first_transformer_omitted(setting, monkeypatch):
    monkeypatch.setattr(transformers(setting)[0], "forward", lambda x, *args: x)
    assert setting.adapter.temporal.transformer.sites[0] == "input_blocks.0.0"
    assert setting.error() == pytest.approx(2.08, rel=CLOSE)


def test_heads_of_the_first_transformer(setting, monkeypatch):
    (block,) = transformers(setting)[0].blocks
    for attention in (block.attn1, block.attn2):
        assert attention.heads == 8
        monkeypatch.setattr(attention, "heads", 4)
    assert setting.error() == pytest.approx(0.80, rel=CLOSE)


def test_temporal_transformers_omitted(setting, monkeypatch):
    for layer in transformers(setting, first=False):
        monkeypatch.setattr(layer, "forward", lambda x, *args: x)
    assert setting.error() == pytest.approx(1.35, rel=CLOSE)


def test_second_attention_omitted(setting, monkeypatch):
    for layer in transformers(setting):
        monkeypatch.setattr(layer.blocks[0].attn2, "forward", torch.zeros_like)
    assert setting.error() == pytest.approx(1.37, rel=CLOSE)


def test_temp_convs_omitted(setting, monkeypatch):
    from magdiff_core.temporal.temp_conv import TempConv

    monkeypatch.setattr(TempConv, "forward", lambda self, x, frames, strength=1.0: x)
    assert setting.error() == pytest.approx(0.78, rel=CLOSE)


def test_temporal_before_spatial(setting, monkeypatch):
    hooks = []
    for site in setting.adapter.temporal.transformer.sites:
        if site == "input_blocks.0.0":
            continue
        layer = setting.adapter.temporal.transformer.find(site)
        right = layer.forward
        hooks.append(
            setting.unet.get_submodule(site).register_forward_pre_hook(
                lambda module, args, f=right: (f(args[0], setting.frames), *args[1:])
            )
        )
        monkeypatch.setattr(layer, "forward", lambda x, *args: x)
    try:
        assert setting.error() == pytest.approx(1.25, rel=CLOSE)
    finally:
        for hook in hooks:
            hook.remove()


def test_positions_added(setting):
    from magdiff_core.temporal.position import frame_positions

    hooks = [
        layer.blocks[0].register_forward_pre_hook(lambda module, args: (args[0] + frame_positions(*args[0].shape[1:]),))
        for layer in transformers(setting)
    ]
    try:
        assert setting.error() == pytest.approx(0.97, rel=CLOSE)
    finally:
        for hook in hooks:
            hook.remove()


def test_frame_rate(setting, config, monkeypatch):
    config(fps=6.0)
    assert setting.error() == pytest.approx(0.061, rel=CLOSE)
    config(fps=3.0)
    monkeypatch.setattr(setting.adapter.temporal.fps_embedding, "of", lambda rate, like: torch.zeros_like(like[:1]))
    assert setting.error() == pytest.approx(0.108, rel=CLOSE)


# --- the picture's latent ---------------------------------------------------------------------------------------------------


def test_latent_in_the_first_frame_only(setting, monkeypatch):
    from magdiff_core.host.call import Call

    right = Call.subject_term

    def wrong(self, like):
        term = right(self, like)
        return torch.cat((term[:, :1], torch.zeros_like(term[:, 1:])), dim=1)

    monkeypatch.setattr(Call, "subject_term", wrong)
    assert setting.error() == pytest.approx(1.75, rel=CLOSE)


def test_latent_unscaled(setting, monkeypatch):
    monkeypatch.setattr(setting.model.model, "process_latent_in", lambda latent: latent)
    assert setting.error() == pytest.approx(1.60, rel=CLOSE)


def test_latent_before_noise(setting, monkeypatch):
    conv_in, conv_z = setting.unet.input_blocks[0][0], setting.adapter.hfa.conv_z
    weights = conv_in.weight, conv_z.weight
    monkeypatch.setitem(conv_in._parameters, "weight", weights[1])
    monkeypatch.setitem(conv_z._parameters, "weight", weights[0])
    assert setting.error() == pytest.approx(2.46, rel=CLOSE)


def test_negative_without_the_latent(setting):
    from magdiff_core.host.conds import GENERATE, SubjectLatents, attach

    positive, negative = setting.conditionings()
    zero = torch.zeros(1, 1, *setting.latent.shape[1:])
    negative = attach(negative, latents=SubjectLatents((zero,), setting.frames, GENERATE))
    assert setting.guided_error((positive, negative)) == pytest.approx(13.3, rel=CLOSE)


# --- eps and groups, too small to show in the output ------------------------------------------------------------------------


def test_eps_of_norms(setting):
    for layer in transformers(setting):
        assert (layer.norm.eps, layer.norm.num_groups) == (1e-6, 32)
        assert {norm.eps for norm in (layer.blocks[0].norm1, layer.blocks[0].norm2, layer.blocks[0].norm3)} == {1e-5}
