"""First stage: the autoencoder of the small model, on single frames of the procedural clips.

The HFA branch encodes subjects on black and all-black frames, so both are part of the training pictures, and a subject is to
have the same latents there as before its background. It is a small part of a frame and carries the identity: its pixels weigh more.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import autocast

from ..data import procedural
from ..host import own_checkpoint
from .batches import widened
from .checkpoint import MovingAverage, load_state, save_state
from .export import read_files
from .loop import Schedule, train

logger = logging.getLogger("magdiff")

SUBJECT_WEIGHT = 5.0
LATENT_NOISE = 0.05
LATENT_PENALTY = 1e-3
AGREEMENT_WEIGHT = 0.5
"""Of `disagreement`."""


def pictures(count: int, generator: torch.Generator, split: str = "train") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random single frames, whole in the first half and again in the second with a part of them black.

    What stays visible in the second half is the subject, in a quarter of them the background, in 1 of 16 nothing.

    Returns:
        pictures `[2 N, 3, 64, 64]` in -1..1; subject_mask `[2 N, 1, 64, 64]`; visible `[N, 1, 64, 64]` in 0..1. N is half of
        `count`, and at least 1.
    """
    scenes = max(1, count // 2)
    spec = procedural.sample(scenes, generator, split)
    # a frame at a random time is the first frame of the same clip started later
    time = torch.randint(procedural.FRAMES, (scenes,), generator=generator)
    centre, size = procedural.trajectory(spec)
    row = torch.arange(scenes)
    spec = spec.replace(centre=centre[row, time], radius=spec.radius * size[row, time])
    frames, subject_mask = procedural.render(spec, frames=1)
    frames, subject_mask = frames[:, 0].permute(0, 3, 1, 2), subject_mask[:, :1]
    draw = torch.rand(scenes, generator=generator)[:, None, None, None]
    visible = torch.where(draw < 0.25, 1 - widened(subject_mask, 2), subject_mask) * (draw < 15 / 16)
    # contiguous: channels in the last place would go through all layers, and torch's group norm is 30 times slower with them
    source = (torch.cat([frames, frames * visible]) * 2 - 1).contiguous()
    return source, subject_mask.repeat(2, 1, 1, 1), visible


def disagreement(latent: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """How far the latents of whole pictures and of their visible parts are apart, where a latent pixel shows the same in both.

    HFA gives the UNet the subject on black; what it then has to paint is the subject before a background. Without this loss the
    two differ by a sixth of the latents' variance even where the subject covers a latent pixel, and by half of it where it
    covers most of one, so that the UNet has to encode anew what it could copy.

    Args:
        latent: `[2 N, C, h, w]`, whole pictures first. visible: `[N, 1, H, W]` in 0..1.

    Returns:
        Mean square difference in units of the latents' variance, weighed by the third power of the visible share.
    """
    whole, part = latent.chunk(2)
    weight = F.adaptive_avg_pool2d(visible, tuple(latent.shape[-2:])) ** 3
    # nothing may be visible anywhere, so the sum may be 0
    difference = ((whole - part).square() * weight).sum() / (weight.sum() * latent.shape[1]).clamp_min(1)
    return difference / latent.detach().var()


def reconstruction_loss(pictures: torch.Tensor, result: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L1 + 4 MSE + 0.5 L1 of the gradients, each weighted by `weight [B, 1, h, w]`."""
    difference = result - pictures
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return (
        (difference.abs() * weight).mean()
        + 4 * (difference.square() * weight).mean()
        + 0.5 * (across.abs() * weight[..., 1:]).mean()
        + 0.5 * (down.abs() * weight[..., 1:, :]).mean()
    )


@torch.no_grad()
def measure(autoencoder: torch.nn.Module, count: int = 256, seed: int = 99) -> dict[str, float]:
    """PSNR in dB on held-out frames: whole pictures, and inside the subject mask (mean square errors averaged first)."""
    spec = procedural.sample(count, torch.Generator().manual_seed(seed), "test")
    frames, subject_mask = procedural.render(spec, frames=1)
    source = frames[:, 0].permute(0, 3, 1, 2) * 2 - 1
    result = torch.cat([autoencoder.decode(autoencoder.encode(part)).clamp(-1, 1) for part in source.split(32)])
    error = (result - source).square()
    decibel = lambda value: round(float(10 * torch.log10(4 / value)), 2)  # noqa: E731
    return {
        "psnr": decibel(error.mean()),
        "subject_psnr": decibel((error * subject_mask).sum() / (3 * subject_mask.sum())),
    }


@torch.no_grad()
def standardise(autoencoder: torch.nn.Module, count: int = 512, seed: int = 98) -> None:
    """Folds mean and spread of the latents into the two 1x1 convolutions, so that the latents are standard as encoded."""
    spec = procedural.sample(count, torch.Generator().manual_seed(seed))
    frames = procedural.render(spec, frames=1)[0][:, 0].permute(0, 3, 1, 2) * 2 - 1
    latents = torch.cat([autoencoder.encode(part) for part in frames.split(32)])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    first, last = autoencoder.quant_conv, autoencoder.post_quant_conv
    last.bias += (last.weight[:, :, 0, 0] * mean).sum(1)
    last.weight *= spread[None, :, None, None]
    first.weight[:channels] /= spread[:, None, None, None]
    first.bias[:channels] = (first.bias[:channels] - mean) / spread


def run(
    folder: Path,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 16,
    rate: float = 1.5e-3,
    seed: int = 0,
    resume: bool = False,
    config: dict | None = None,
    start_from: Path | None = None,
) -> dict[str, float]:
    """Trains the autoencoder; writes `autoencoder.pt` (averaged, standardised) into `folder` at each save.

    `start_from`: folder with the two model files, whose decoder alone goes on learning. So the latents stay as they are, and
    `export` can put the decoder back to the UNet that was trained on them.

    Returns:
        The measurements of the last one.
    """
    torch.manual_seed(seed)
    config = config or own_checkpoint.MINI_CONFIG["autoencoder"]
    autoencoder = own_checkpoint.build_autoencoder(config).requires_grad_(True)
    if start_from is not None:
        autoencoder.load_state_dict(weights_of_files(start_from))
        for part in (autoencoder.encoder, autoencoder.quant_conv):
            part.requires_grad_(False)
    parameters = {name: value for name, value in autoencoder.named_parameters() if value.requires_grad}

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        source, subject_mask, visible = pictures(batch, generator)
        with autocast("cpu", torch.bfloat16):
            moments = autoencoder.quant_conv(autoencoder.encoder(source))
            latent = moments[:, : config["embed_dim"]].float()
            noise = torch.randn(latent.shape, generator=generator) * latent.detach().std() * LATENT_NOISE
            result = autoencoder.decoder(autoencoder.post_quant_conv(latent + noise)).float()
        weight = 1 + SUBJECT_WEIGHT * widened(subject_mask, 1)
        penalties = LATENT_PENALTY * latent.square().mean() + AGREEMENT_WEIGHT * disagreement(latent, visible)
        return reconstruction_loss(source, result, weight) + penalties

    measured: dict[str, float] = {}

    def export(average: MovingAverage, step: int) -> None:
        copy = own_checkpoint.build_autoencoder(config)
        copy.load_state_dict({**autoencoder.state_dict(), **average.values})
        if start_from is None:
            standardise(copy)
        measured.update(measure(copy), step=step)
        logger.info("autoencoder at step %d: %s", step, measured)
        save_state(folder / "autoencoder.pt", {"weights": copy.state_dict(), "measured": dict(measured)})

    schedule = Schedule(rate, steps, seconds, decay_from=0.5, weight_decay=0.0, average_decay=0.995, save_every=240.0)
    train(parameters, loss_of, schedule, folder, seed, resume, export)
    return measured


def weights_of_files(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the autoencoder in a pair of model files. Raises OSError where one is missing."""
    prefix = own_checkpoint.VAE_PREFIX
    return {name.removeprefix(prefix): value for name, value in read_files(folder)[0].items() if name.startswith(prefix)}


def load(file: Path, config: dict | None = None) -> torch.nn.Module:
    """The autoencoder that `run` wrote, frozen."""
    autoencoder = own_checkpoint.build_autoencoder(config or own_checkpoint.MINI_CONFIG["autoencoder"])
    autoencoder.load_state_dict(load_state(file)["weights"])
    return autoencoder.requires_grad_(False).eval()
