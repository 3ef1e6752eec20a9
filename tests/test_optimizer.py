"""Muon inside, AdamW at the edges: which parameter moves how, and that a resumed run goes on as one that was never stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from magdiff_core.train.optimizer import MuonAndAdamW, adamw

RATE = 1e-2


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"first.weight": (8, 3, 3, 3), "inside.weight": (8, 4, 3, 3), "inside.bias": (8,), "gain": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients(values: dict[str, nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for value in values.values():
        value.grad = torch.randn(value.shape, generator=generator)


def test_a_step_of_an_inner_kernel_is_orthogonal_and_as_long_as_that_of_adamw():
    values = parameters()
    before = {name: value.detach().clone() for name, value in values.items()}
    optimizer = MuonAndAdamW(values, RATE, 0.0, apart=("first.",))
    gradients(values, 2)
    # one direction a thousand times stronger than another
    left, _, right = torch.linalg.svd(values["inside.weight"].grad.flatten(1), full_matrices=False)
    values["inside.weight"].grad = (left * torch.logspace(0, -3, 8) @ right).view(8, 4, 3, 3)
    optimizer.step()
    step = {name: before[name] - value.detach() for name, value in values.items()}
    lengths = torch.linalg.svdvals(step["inside.weight"].flatten(1))
    assert lengths[0] / lengths[-1] < 3
    assert float(step["inside.weight"].square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.25)
    for name in ("first.weight", "inside.bias", "gain"):  # AdamW's first step goes by the sign alone
        assert torch.allclose(step[name], RATE * values[name].grad.sign(), rtol=1e-3), name


def test_what_has_no_gradient_stays():
    values = parameters()
    before = values["inside.weight"].detach().clone()
    optimizer = MuonAndAdamW(values, RATE, 0.01, apart=("first.",))
    gradients(values, 2)
    optimizer.zero_grad()
    assert all(value.grad is None for value in values.values())
    optimizer.step()
    assert torch.equal(values["inside.weight"], before)


def test_the_rate_of_all_parameters_is_set_by_the_groups():
    values = parameters()
    before = {name: value.detach().clone() for name, value in values.items()}
    optimizer = MuonAndAdamW(values, RATE, 0.01, apart=("first.",))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients(values, 2)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in values.items())


@pytest.mark.parametrize("make", [adamw, lambda *given: MuonAndAdamW(*given, apart=("first.",))], ids=["adamw", "muon"])
def test_a_state_that_was_loaded_goes_on_bit_by_bit(make):
    whole = parameters()
    optimizer = make(whole, RATE, 0.01)
    for number in range(3):
        gradients(whole, number)
        optimizer.step()
    kept, state = {name: value.detach().clone() for name, value in whole.items()}, copy.deepcopy(optimizer.state_dict())
    resumed = {name: nn.Parameter(value.clone()) for name, value in kept.items()}
    second = make(resumed, RATE, 0.01)
    second.load_state_dict(state)
    for values, each in ((whole, optimizer), (resumed, second)):
        gradients(values, 7)
        each.step()
    assert all(torch.equal(value, resumed[name]) and not torch.equal(value, kept[name]) for name, value in whole.items())


def test_a_kernel_whose_memory_is_no_matrix_is_refused():
    values = {"inside.weight": nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))}
    with pytest.raises(RuntimeError):
        MuonAndAdamW(values, RATE, 0.01, apart=())


def test_a_state_of_adamw_alone_and_a_torch_without_muon_are_refused_with_the_way_out(monkeypatch):
    values = parameters()
    optimizer = MuonAndAdamW(values, RATE, 0.01, apart=())
    with pytest.raises(ValueError, match="--start-from"):
        optimizer.load_state_dict(adamw(values, RATE, 0.01).state_dict())
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match=r"torch .* has no Muon: .* needs torch 2\.9 or newer"):
        MuonAndAdamW(values, RATE, 0.01, apart=())
