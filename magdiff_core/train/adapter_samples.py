"""What the adapter can do so far, as a picture: a row for each clip, the subject first and then the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..host.training_encode import Encoders, conditioning
from .adapter_stage import AdapterStage
from .checkpoint import MovingAverage, write_atomically
from .engine import Engine

GUIDANCE = 7.5
STEPS = 25


@dataclass
class SampleClip:
    """`clip`: the tensors of its cache file. `subject [1, H, W, 3]`: shown at the start of the row, or None."""

    clip: dict[str, Tensor]
    subject: Tensor | None = None


@torch.no_grad()
def sample_latents(
    stage: AdapterStage, engine: Engine, clips: Sequence[dict[str, Tensor]], common: dict[str, Tensor], steps: int, seed: int
) -> Tensor:
    """DDIM from noise that depends on `seed` alone, with prompts and subjects of cached clips: `[B, F, C, h, w]`, not scaled."""
    base = stage.training.base
    shape = clips[0]["latents"].shape
    noise = torch.randn(len(clips), *shape, generator=torch.Generator().manual_seed(seed)).to(engine.device)
    sigmas = stage.training.ddim_sigmas(steps).to(engine.device)
    x = stage.training.pure_noise(noise, sigmas[0])
    text = torch.cat([torch.stack([clip["text"] for clip in clips]), common["text"].expand(len(clips), -1, -1)]).to(engine.device)
    # both branches of the guidance read the subject, as the nodes wire it
    names = [name for name in clips[0] if name not in ("latents", "text")]
    subjects = {name: torch.stack([clip[name] for clip in clips] * 2).to(engine.device) for name in names}
    tokens, latents = conditioning(subjects, common, stage.config.image_encoder.layer, shape[0])
    for sigma, following in zip(sigmas, sigmas[1:]):
        both = engine.run(None, common, torch.cat([x, x]), sigma.expand(2 * len(x)), text, tokens, latents)
        with_prompt, without = both.chunk(2)
        clean = without + GUIDANCE * (with_prompt - without)
        # one step of DDIM, in terms of sigma
        x = x + (x - clean) / sigma * (following - sigma)
    return base.process_latent_out(x).cpu()


@torch.no_grad()
def sample_sheet(
    stage: AdapterStage,
    engine: Engine,
    average: MovingAverage,
    encoders: Encoders,
    clips: Sequence[SampleClip],
    common: dict[str, Tensor],
    steps: int = STEPS,
    seed: int = 0,
) -> Tensor:
    """Samples with the averaged weights, which is what the adapter file holds: a picture `[H, W, 3]` in 0..1."""
    with engine.with_values(average.values):
        latents = sample_latents(stage, engine, [row.clip for row in clips], common, steps, seed)
    rows = []
    for row, frames in zip(clips, latents):
        pictures = encoders.pictures(frames)
        shown = [] if row.subject is None else [row.subject]
        rows.append(torch.cat([*shown, pictures]).permute(1, 0, 2, 3).flatten(1, 2))
    return torch.cat(rows)


def save_picture(path: Path, picture: Tensor) -> None:
    """`[H, W, 3]` in 0..1 as a PNG."""
    from PIL import Image

    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))
