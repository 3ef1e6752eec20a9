"""A stored fixture's model, ready for one guided call, for tests that make a known mistake on purpose."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = 0.03
"""Relative; the sizes of the mistakes are known to two or three digits."""


class Setting:
    """The model of `tests/fixtures/<name>.safetensors`, as `parity` (a module of magdiff_core.host.parity) builds it."""

    def __init__(self, name: str, parity: ModuleType):
        from magdiff_core.host.attach import adapter_of
        from magdiff_core.host.parity.fixture import load_fixture

        self.parity = parity
        self.fixture = load_fixture(FIXTURES / f"{name}.safetensors")
        with torch.inference_mode():
            self.model = parity.build_model(self.fixture)
        self.adapter = adapter_of(self.model).model
        self.unet = self.model.model.diffusion_model
        self.latent = self.fixture.inputs["latent"][0].transpose(0, 1)
        self.frames = self.latent.shape[0]
        self.timestep = int(self.fixture.inputs["timestep"])

    def conditionings(self, frames: int | None = None) -> tuple[list, list]:
        """Positive and negative of the first `frames` frames, all by default."""
        return self.parity.conditionings(self.fixture, self.model, frames or self.frames)

    def output(self, frames: int | None = None, latent: torch.Tensor | None = None, conds: tuple | None = None) -> torch.Tensor:
        """What the UNet gives, `[2, C, F, h, w]`, negative first."""
        from magdiff_core.host.parity.observe import Observer
        from magdiff_core.host.parity.runs import unet_outputs

        frames = frames or self.frames
        latent = self.latent[:frames] if latent is None else latent
        with torch.inference_mode(), Observer(self.model) as observer:
            (out,) = unet_outputs(self.model, observer, latent, self.timestep, *(conds or self.conditionings(frames)))
        return torch.stack(out).transpose(1, 2)

    def error(self, frames: int | None = None, latent: torch.Tensor | None = None) -> float:
        """Largest difference between the output and the stored one (`f1.eps` for one frame)."""
        stored = self.fixture.stored["out.eps" if frames in (None, self.frames) else "f1.eps"]
        return float((self.output(frames, latent) - stored).abs().max())

    def guided_error(self, conds: tuple | None = None) -> float:
        """Largest difference of the guided output (7.5)."""
        (uncond, cond), (wanted_uncond, wanted_cond) = self.output(conds=conds), self.fixture.stored["out.eps"]
        return float((uncond + 7.5 * (cond - uncond) - wanted_uncond - 7.5 * (wanted_cond - wanted_uncond)).abs().max())
