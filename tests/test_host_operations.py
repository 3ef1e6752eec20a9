"""The Linear of our modules in ComfyUI: on a CPU by a convolution, with the same result, and never past ComfyUI's casting."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear


@pytest.fixture(scope="module")
def operations(comfy_session):
    from magdiff_core.host import operations

    return operations


@pytest.fixture
def convolutions(operations, monkeypatch):
    """Shapes of the pictures that are convolved."""
    seen = []
    convolve = operations.conv2d
    monkeypatch.setattr(operations, "conv2d", lambda x, *rest: seen.append(tuple(x.shape)) or convolve(x, *rest))
    return seen


def layer_of(operations, bias: bool = True, **options):
    layer = operations.HostOperations.Linear(24, 40, bias=bias, **options)
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (40, 24), **({"bias": (40,)} if bias else {})}
    layer.load_state_dict({k: torch.randn(s, generator=generator).to(options.get("dtype")) for k, s in shapes.items()}, assign=True)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_product(operations, convolutions, bias):
    layer = layer_of(operations, bias)
    clip = torch.randn(2, 24, 8, 64)
    for x in (torch.randn(512, 24), torch.randn(2, 8, 32, 24), clip.permute(0, 3, 2, 1)):
        expected = linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        torch.testing.assert_close(layer(x), expected.float(), atol=2e-5, rtol=1e-5)
    assert convolutions == [(16, 24, 32, 1), (16, 24, 32, 1), (16, 24, 64, 1)]


@pytest.mark.parametrize("rows", [1, 496, 513])
def test_few_rows_and_odd_ones_go_the_plain_way(operations, convolutions, rows):
    layer, x = layer_of(operations), torch.randn(rows, 24)
    assert torch.equal(layer(x), linear(x, layer.weight, layer.bias)) and not convolutions


def test_what_is_to_be_cast_or_patched_goes_comfyuis_way(operations, convolutions):
    x = torch.randn(512, 24)
    narrow = layer_of(operations, dtype=torch.float16)
    torch.testing.assert_close(narrow(x), linear(x, narrow.weight.float(), narrow.bias.float()))
    assert narrow(x.half()).dtype == torch.float16
    patched = layer_of(operations)
    plain = linear(x, copy.deepcopy(patched.weight), patched.bias)
    patched.weight_function = [lambda weight: 2 * weight]
    torch.testing.assert_close(patched(x), 2 * plain - patched.bias, atol=1e-4, rtol=1e-5)
    assert not convolutions


def test_gradients(operations, convolutions):
    layer, x = layer_of(operations), torch.randn(512, 24, requires_grad=True)
    layer(x).square().sum().backward()
    expected = x.detach().requires_grad_()
    linear(expected, layer.weight, layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, atol=1e-3, rtol=1e-4)
    assert convolutions


def test_our_modules_are_made_of_it(operations):
    from magdiff_core.adapter import AdapterConfig
    from magdiff_core.host.adapter_file import adapter_patcher

    channels, token_width = 32, 16
    stream = {f"apa.site.{name}.weight": torch.zeros(channels, token_width) for name in ("to_k_image", "to_v_image")}
    alphas = {f"apa.site.{name}": torch.ones(1) for name in ("alpha_text", "alpha_image")}
    adapter = adapter_patcher(stream | alphas, AdapterConfig()).patcher.model
    assert type(adapter.apa.find("site").to_k_image) is operations.HostOperations.Linear
