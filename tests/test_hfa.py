"""The subject pyramid: sizes, fitting of pictures, the sum of its levels, and the split first convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Conv2d

from magdiff_core.alignment.hfa import SubjectBranch, fit, pyramid_sizes, resize


def test_sizes_of_the_paper():
    """256, 320 and 384 pixels, over 8."""
    assert pyramid_sizes(32, 32) == [(32, 32), (40, 40), (48, 48)]


@pytest.mark.parametrize(
    ("base", "sizes"),
    [((32, 48), [(32, 48), (40, 60), (48, 72)]), ((9, 7), [(9, 7), (11, 9), (14, 11)]), ((1, 2), [(1, 2), (1, 3), (2, 3)])],
)
def test_each_side_is_rounded_by_itself(base, sizes):
    assert pyramid_sizes(*base) == sizes


def gradient(height: int, width: int) -> torch.Tensor:
    """Red grows to the right, green downwards, blue is 1."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack((x, y, torch.ones(height, width)), -1)[None]


def test_the_same_size_is_left_alone():
    picture = gradient(6, 10)
    for mode in ("crop", "pad", "stretch"):
        assert torch.equal(fit(picture, 6, 10, mode), picture)
    assert resize(picture.movedim(-1, 1), 6, 10).data_ptr() == picture.data_ptr()


def test_crop_cuts_the_centre():
    wide = fit(gradient(8, 16), 8, 8, "crop")
    assert torch.allclose(wide, gradient(8, 16)[:, :, 4:12])
    tall = fit(gradient(16, 8), 8, 8, "crop")
    assert torch.allclose(tall, gradient(16, 8)[:, 4:12])


def test_pad_fills_with_black_on_both_sides():
    padded = fit(gradient(8, 16), 16, 16, "pad")
    assert torch.allclose(padded[:, 4:12], gradient(8, 16))
    assert padded[:, :4].abs().max() == padded[:, 12:].abs().max() == 0
    odd = fit(gradient(8, 5), 8, 8, "pad")
    assert torch.allclose(odd[:, :, 2:7], gradient(8, 5)) and odd[:, :, :2].abs().max() == odd[:, :, 7:].abs().max() == 0


def test_stretch_reaches_all_edges():
    out = fit(gradient(8, 16), 16, 8, "stretch")
    assert out.shape == (1, 16, 8, 3)
    assert out[0, :, 0, 0].max() < 0.15 and out[0, :, -1, 0].min() > 0.85
    assert out[0, 0, :, 1].max() < 0.15 and out[0, -1, :, 1].min() > 0.85


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(7, 13), (32, 16), (5, 5), (64, 64)])
def test_any_size_is_reached_within_the_range_of_colours(mode, size):
    out = fit(gradient(20, 11), *size, mode)
    assert out.shape == (1, *size, 3) and 0 <= out.min() and out.max() <= 1
    if mode != "pad":
        assert torch.allclose(out[..., 2], torch.ones(size), atol=1e-6)


def test_halving_is_antialiased():
    """A checkerboard becomes grey, as the area of a pixel does."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    small = fit(board[None, :, :, None].float().repeat(1, 1, 1, 3), 4, 4, "stretch")
    assert torch.allclose(small, torch.full_like(small, 0.5), atol=0.05)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'cover'.*crop, pad, stretch"):
        fit(gradient(4, 4), 8, 8, "cover")


def randomised(*hidden: int) -> SubjectBranch:
    torch.manual_seed(0)
    branch = SubjectBranch(4, 16, hidden).double()
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.normal_()
    return branch


def levels(side: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 4, n, n, dtype=torch.float64) for n in (side, side * 5 // 4, side * 3 // 2)]


def test_levels_are_resized_convolved_and_summed():
    branch, latents = randomised(6, 6), levels()
    z_s = latents[0]
    for name, latent in (("1", latents[1]), ("2", latents[2])):
        convs = branch.level[name]
        h = nn.functional.interpolate(latent, size=(8, 8), mode="bilinear", antialias=True, align_corners=False)
        h = nn.functional.conv2d(h, convs.conv_in.weight, convs.conv_in.bias, padding=1)
        h = h * torch.sigmoid(h)
        z_s = z_s + nn.functional.conv2d(h, convs.conv_out.weight, convs.conv_out.bias, padding=1)
    # The resize itself works in float32.
    assert torch.allclose(branch.subject_latent(latents), z_s, atol=1e-4)


def test_without_levels_the_lowest_latent_is_the_subject_latent():
    assert torch.equal(randomised().subject_latent(levels()), levels()[0])


def test_zero_initialised_levels_add_nothing():
    branch = randomised(6, 6)
    for level in branch.level.values():
        nn.init.zeros_(level.conv_out.weight)
        nn.init.zeros_(level.conv_out.bias)
    assert torch.equal(branch.subject_latent(levels()), levels()[0])


def test_a_separate_convolution_equals_a_wider_one_on_the_concatenation():
    """conv_in(z_n) + conv_z(z_s) == conv over [z_n, z_s] with the weights side by side."""
    branch, z_n = randomised(6, 6), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    conv_in = Conv2d(4, 16, 3, padding=1).double()
    wide = Conv2d(8, 16, 3, padding=1).double()
    with torch.no_grad():
        wide.weight.copy_(torch.cat((conv_in.weight, branch.conv_z.weight), 1))
        wide.bias.copy_(conv_in.bias)
    z_s = branch.subject_latent(levels())
    assert branch.conv_z.bias is None
    assert torch.allclose(conv_in(z_n) + branch(levels()), wide(torch.cat((z_n, z_s), 1)), atol=1e-12)
