"""Temporal layers against torch's own 3-D layers and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import GroupNorm

from magdiff_core.temporal.attention import attend
from magdiff_core.temporal.clip_norm import clip_group_norm
from magdiff_core.temporal.position import frame_positions
from magdiff_core.temporal.temp_attn import TempAttn
from magdiff_core.temporal.temp_conv import TempConv


def randomise(module: nn.Module) -> nn.Module:
    """Weights from a fixed seed, no zeros and no ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5 * 0.7 + 0.1)
    return module.double()


def video(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Frames `[b * F, C, h, w]` -> a clip as torch's 3-D layers take it, `[b, C, F, h, w]`."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def frames_of(clip: torch.Tensor) -> torch.Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


@pytest.fixture
def x() -> torch.Tensor:
    """Two clips of three frames whose scales differ much, so that norms by frame would show."""
    torch.manual_seed(1)
    x = torch.randn(6, 64, 4, 5, dtype=torch.float64)
    return x * torch.tensor([1.0, 5.0, 0.2, 3.0, 1.0, 10.0], dtype=torch.float64)[:, None, None, None]


def test_clip_norm_is_group_norm_of_the_video(x):
    norm = randomise(GroupNorm(32, 64, eps=1e-5))
    ours = clip_group_norm(norm, x, 3)
    expected = frames_of(nn.functional.group_norm(video(x, 3), 32, norm.weight, norm.bias, 1e-5))
    assert torch.allclose(ours, expected, atol=1e-12)
    assert not torch.allclose(ours, norm(x), atol=1e-2)


def test_clip_norm_keeps_clips_apart(x):
    norm = randomise(GroupNorm(32, 64))
    other = x.clone()
    other[3:] *= 100
    assert torch.equal(clip_group_norm(norm, x, 3)[:3], clip_group_norm(norm, other, 3)[:3])


def test_clip_norm_of_one_frame_is_the_layer_itself(x):
    norm = randomise(GroupNorm(32, 64))
    assert torch.equal(clip_group_norm(norm, x, 1), norm(x))


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_temp_conv_is_four_3d_convolutions(x, strength):
    layer = randomise(TempConv(64))
    h = video(x, 3)
    for part in layer.layers:
        h = nn.functional.group_norm(h, 32, part.norm.weight, part.norm.bias, eps=1e-5)
        h = nn.functional.conv3d(nn.functional.silu(h), part.conv.weight[..., None], part.conv.bias, padding=(1, 0, 0))
    assert len(layer.layers) == 4
    expected = x + strength * frames_of(h)
    assert torch.allclose(layer(x, 3, strength), expected, atol=1e-9)


def test_temp_conv_of_one_frame_is_the_identity(x):
    assert torch.equal(randomise(TempConv(64))(x, 1), x)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_temp_attn_is_attention_over_frames_token_by_token(strength):
    torch.manual_seed(2)
    clips, frames, tokens, channels, heads = 2, 3, 5, 8, 2
    layer = randomise(TempAttn(channels))
    x = torch.randn(clips * frames, tokens, channels, dtype=torch.float64)
    positions = frame_positions(frames, channels, dtype=torch.float64)
    out = layer(x, frames, heads, positions, strength)

    to_q, to_k, to_v = layer.to_qkv.weight.chunk(3)
    width = channels // heads
    for clip in range(clips):
        for token in range(tokens):
            z = torch.stack([x[clip * frames + f, token] + positions[f] for f in range(frames)])
            centred = z - z.mean(1, keepdim=True)
            norm = centred / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * layer.norm.weight + layer.norm.bias
            q, k, v = norm @ to_q.T, norm @ to_k.T, norm @ to_v.T
            heads_out = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = q[:, part] @ k[:, part].T / math.sqrt(width)
                heads_out.append(scores.softmax(1) @ v[:, part])
            h = torch.cat(heads_out, 1) @ layer.to_out.weight.T + layer.to_out.bias
            expected = z + strength * h
            for f in range(frames):
                assert torch.allclose(out[clip * frames + f, token], expected[f], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_over_frames_is_torch_s_own_in_every_precision(dtype):
    q, k, v = torch.randn(3, 6, 2, 8, 32, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype))
    assert found.dtype == dtype
    # for values up to 4
    assert torch.allclose(found.float(), expected, atol=8 * torch.finfo(dtype).eps)


def test_temp_attn_of_one_frame_adds_the_first_position_only():
    layer = randomise(TempAttn(8))
    x, positions = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    assert torch.equal(layer(x, 1, 2, positions), x + positions[0])


def test_norms_use_the_released_eps():
    assert TempAttn(8).norm.eps == 1e-5
    assert {part.norm.eps for part in TempConv(32).layers} == {1e-5}
    assert {part.norm.num_groups for part in TempConv(64).layers} == {32}


def test_frame_positions_by_formula():
    frames, channels = 7, 10
    positions = frame_positions(frames, channels)
    assert positions.shape == (frames, channels) and positions.dtype == torch.float32
    for p in range(frames):
        for i in range(channels // 2):
            angle = p * 10000 ** (-2 * i / channels)
            assert positions[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert positions[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_frame_positions_are_rounded_last():
    exact = frame_positions(300, 64)
    assert torch.equal(frame_positions(300, 64, dtype=torch.bfloat16), exact.bfloat16())


def test_long_clips_extend_short_ones():
    assert torch.equal(frame_positions(9, 16)[:4], frame_positions(4, 16))
