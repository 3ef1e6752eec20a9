"""Runs of the small SVD of the parity file through ComfyUI's sampler, with the control branch on its conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch

from magdiff_core.host.control_object import ReVideoControl
from magdiff_core.host.parity.fixture import load_fixture
from magdiff_core.host.parity.revideo_branch import control_of
from magdiff_core.host.parity.revideo_run import model_of
from magdiff_core.motion.hints import ControlHints, EditRequest

FILE = Path(__file__).parent / "fixtures" / "revideo_sampler.safetensors"
FRAMES = 3
SIDE = 64
CONTEXT, VECTOR = 16, 24


@lru_cache(1)
def fixture():
    return load_fixture(FILE)


def base():
    return model_of(fixture())


def branch():
    """The control branch in a patcher of its own."""
    device = torch.device("cpu")
    model = control_of(fixture(), "B.ctrl.", fixture().meta["B"]["config_ctrl"])
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Hints:
    """Random hints of a clip."""

    frames: int = FRAMES
    seed: int = 1
    moving: bool = False
    pixels: int = SIDE * SIDE

    def hints(self, width: int, height: int) -> ControlHints:
        assert width * height == self.pixels
        region = torch.zeros(self.frames, 1, height, width)
        for frame in range(self.frames):
            left = 8 + (4 * frame % 32 if self.moving else 0)
            region[frame, :, 16:48, left : left + 24] = 1.0
        content = torch.where(region > 0, -1.0, random(self.frames, 3, height, width, seed=self.seed).clamp(-1, 1))
        return ControlHints(content, 3.0 * random(self.frames, 2, height, width, seed=self.seed + 1), region)


def request(frames: int = FRAMES, width: int = SIDE, height: int = SIDE) -> EditRequest:
    """A region and one point that moves to the right."""
    path = torch.tensor([[[20.5 + 3 * frame, 30.5]] for frame in range(frames)])
    edit_mask = torch.zeros(1, height, width)
    edit_mask[:, 16:48, 8:56] = 1.0
    pictures = random(frames, height, width, 3, seed=5).clamp(0, 1)
    return EditRequest(pictures, edit_mask, path, torch.ones(frames, 1, dtype=torch.bool))


def control(source=None, strength: float = 1.0, percents: tuple[float, float] = (0.0, 1.0), **options) -> ReVideoControl:
    return ReVideoControl(branch(), Hints() if source is None else source, **options).set_cond_hint(None, strength, percents)


def conds(control=None, frames: int = FRAMES, negative_control=None) -> tuple[list, list]:
    vector, picture = random(1, VECTOR, seed=11).repeat(frames, 1), random(1, 4, SIDE // 8, SIDE // 8, seed=12)
    extras = {"vector": vector, "concat_latent_image": picture.repeat(frames, 1, 1, 1)}
    given = {} if control is None else {"control": control}
    other = given if negative_control is None else {"control": negative_control}
    text = random(1, 1, CONTEXT, seed=13)
    return (
        [[text, {**extras, **given}]],
        [[torch.zeros_like(text), {**extras, "concat_latent_image": torch.zeros_like(extras["concat_latent_image"]), **other}]],
    )


def run(model, conditionings, frames: int = FRAMES, steps: int = 2, cfg: float = 3.0, noise=None) -> torch.Tensor:
    noise = random(frames, 4, SIDE // 8, SIDE // 8, seed=21) if noise is None else noise
    empty = torch.zeros_like(noise)
    positive, negative = conditionings
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "karras", positive, negative, empty, seed=1, disable_pbar=True
    )
