"""Dual cross-attention and the Resampler against explicit softmax."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from magdiff_core.alignment.apa import ADAPTIVE, FIXED, AlphaSettings, ImageStream, dual_cross_attention
from magdiff_core.alignment.resampler import Resampler


def attention_of(heads: int):
    def attention(q, k, v):
        """Softmax attention, head by head."""
        parts = []
        for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            scores = a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            parts.append(weights @ c)
        return torch.cat(parts, -1)

    return attention


def sdpa(heads: int):
    def attention(q, k, v):
        split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    return attention


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def stream() -> ImageStream:
    stream = ImageStream(6, 8).double()
    with torch.no_grad():
        stream.to_k_image.weight.copy_(normal(8, 6, seed=1))
        stream.to_v_image.weight.copy_(normal(8, 6, seed=2))
        stream.alpha_text.fill_(0.8)
        stream.alpha_image.fill_(1.7)
    return stream


@pytest.mark.parametrize(("mode", "s_t", "s_i"), [(ADAPTIVE, 0.8, 1.7), (FIXED, 1.0, 1.0)])
def test_two_softmaxes_are_weighed_and_summed(stream, mode, s_t, s_i):
    """Equation 4 (adaptive) and 3 (fixed)."""
    q, text, image = normal(2, 5, 8, seed=3), (normal(2, 7, 8, seed=4), normal(2, 7, 8, seed=5)), normal(2, 3, 6, seed=6)
    key, value = stream.key_value(image)
    out = dual_cross_attention(q, text, (key, value), *stream.weights(mode, 1.0, q), sdpa(2))
    exact = attention_of(2)
    k_i, v_i = image @ stream.to_k_image.weight.T, image @ stream.to_v_image.weight.T
    assert torch.allclose(out, s_t * exact(q, *text) + s_i * exact(q, k_i, v_i), atol=1e-12)
    # Not one softmax over both.
    joined = exact(q, torch.cat((text[0], k_i), 1), torch.cat((text[1], v_i), 1))
    assert not torch.allclose(out, joined, atol=0.1)


def test_without_a_picture_the_text_alone_is_weighed(stream):
    q, text = normal(2, 5, 8, seed=3), (normal(2, 7, 8, seed=4), normal(2, 7, 8, seed=5))
    out = dual_cross_attention(q, text, None, *stream.weights(ADAPTIVE, 1.0, q), sdpa(2))
    assert torch.allclose(out, 0.8 * attention_of(2)(q, *text), atol=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_part_strength_runs_from_the_plain_model_to_the_learned_weights(stream, p):
    text, image = stream.weights(ADAPTIVE, p, stream.alpha_text)
    assert text.item() == pytest.approx(1 + p * (0.8 - 1)) and image.item() == pytest.approx(p * 1.7)
    text, image = stream.weights(FIXED, p, stream.alpha_text)
    assert text.item() == 1.0 and image.item() == pytest.approx(p)


def test_weights_follow_dtype_and_device_of_the_queries(stream):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert {w.dtype for w in stream.weights(ADAPTIVE, 0.5, torch.zeros(1, dtype=dtype))} == {dtype}


def test_default_settings_are_as_learned():
    settings = AlphaSettings()
    assert (settings.alpha_text, settings.alpha_image, settings.mode) == (1.0, 1.0, ADAPTIVE)
    assert (settings.start_percent, settings.end_percent) == (0.0, 1.0)


SIZES = {"image_width": 10, "width": 12, "token_width": 6, "queries": 3, "depth": 2, "heads": 2, "inner": 8, "feed_forward": 20}


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm, eps: float = 1e-5) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def test_resampler_by_hand():
    resampler = Resampler(**SIZES).double()
    with torch.no_grad():
        for i, parameter in enumerate(resampler.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i) * 0.4)
    tokens = normal(4, 9, 10, seed=99)
    x = tokens @ resampler.proj_in.weight.T + resampler.proj_in.bias
    queries = resampler.latents.repeat(4, 1, 1)
    for attention, feed_forward in resampler.layers:
        patches, own = layer_norm(x, attention.norm1), layer_norm(queries, attention.norm2)
        # Queries attend to the patch tokens and to themselves.
        k, v = (torch.cat((patches, own), 1) @ attention.to_kv.weight.T).split(8, -1)
        queries = queries + attention_of(2)(own @ attention.to_q.weight.T, k, v) @ attention.to_out.weight.T
        h = layer_norm(queries, feed_forward[0]) @ feed_forward[1].weight.T
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        queries = queries + h @ feed_forward[3].weight.T
    expected = layer_norm(queries @ resampler.proj_out.weight.T + resampler.proj_out.bias, resampler.norm_out)
    assert torch.allclose(resampler(tokens), expected, atol=1e-10)
    assert resampler(tokens).shape == (4, 3, 6)


def test_resampler_norms_use_the_released_eps():
    assert {module.eps for module in Resampler(**SIZES).modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_resampler_reads_each_picture_alone():
    resampler = Resampler(**SIZES).double()
    with torch.no_grad():
        resampler.latents.normal_()
    tokens = normal(3, 9, 10, seed=1)
    other = tokens.clone()
    other[2] = 0
    assert torch.equal(resampler(tokens)[:2], resampler(other)[:2])
