"""Middle stage of the small model: image encoder and Resampler learn to tell subjects apart.

The paper takes a CLIP that was trained before and keeps it frozen. Trained together with the UNet from scratch, the image tokens
die: the subject latents say all that they could say, nothing holds the encoder to its picture, and after 3000 steps the
tokens of any two pictures were equal to the fourth digit. So the encoder is trained first, by itself: a linear map from its
tokens has to give back the picture, its shape and its texture. Then both stay frozen. (The paper goes on training its
Resampler. Here that undid it again: the tokens lost three quarters of their spread in the first 200 steps.)
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, autocast, nn
from torch.nn import Linear

from ..data import procedural
from ..data.sprites import SHAPES, TEXTURES
from ..host import own_checkpoint
from ..host.loaded_checkpoint import LoadedCheckpoint
from ..host.training import encode_pictures
from .batches import reference_pictures
from .checkpoint import MovingAverage, load_state, save_state
from .export import ADAPTER_PREFIX
from .loop import Schedule, train

logger = logging.getLogger("magdiff")

PICTURE_SIDE = 16
"""Pixels of the picture that the tokens give back."""
PROJECTOR_PREFIX = ADAPTER_PREFIX + "projector."


class Readout(nn.Module):
    """Throw-away head: all tokens of a picture `[B, L, D]` -> small picture `[B, 3, 16, 16]`, logits of shape and texture."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.sizes = (3 * PICTURE_SIDE**2, len(SHAPES), len(TEXTURES))
        self.linear = Linear(tokens * width, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        picture, shape, texture = self.linear(tokens.flatten(1)).split(self.sizes, 1)
        return picture.unflatten(1, (3, PICTURE_SIDE, PICTURE_SIDE)), shape, texture


def readout_loss(readout: Readout, tokens: Tensor, pictures: Tensor, spec: procedural.ClipSpec) -> Tensor:
    """Square error of the small picture (`pictures [B, H, W, 3]` in 0..1, scaled up to matter) plus both cross entropies."""
    picture, shape, texture = readout(tokens)
    small = F.adaptive_avg_pool2d(pictures.movedim(-1, 1), PICTURE_SIDE)
    return 10 * F.mse_loss(picture, small) + 0.2 * (F.cross_entropy(shape, spec.shape) + F.cross_entropy(texture, spec.texture))


def run(
    folder: Path,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 64,
    rate: float = 2e-3,
    seed: int = 0,
    resume: bool = False,
    config: dict | None = None,
) -> None:
    """Writes `subject_encoder.pt` (averaged weights by file key, projector behind `ADAPTER_PREFIX`) into `folder`."""
    from .diffusion import Stage

    stage = Stage(config or own_checkpoint.MINI_CONFIG, seed=seed)
    projector = stage.training.adapter.projector.requires_grad_(True)
    _, queries, _ = projector.latents.shape
    readout = Readout(queries, projector.norm_out.weight.shape[0])
    encoder = stage.modules[own_checkpoint.IMAGE_PREFIX].requires_grad_(True)
    kept = by_file_key(encoder, projector)

    def loss_of(generator: torch.Generator) -> Tensor:
        spec = procedural.sample(batch, generator)
        pictures = reference_pictures(spec, generator)[0][:, 0]
        with autocast("cpu", torch.bfloat16):
            tokens = projector(encode_pictures(stage.loaded, pictures))
        return readout_loss(readout, tokens.float(), pictures, spec)

    def export(average: MovingAverage, step: int) -> None:
        result = Stage(stage.config, seed=seed)
        parts = result.modules[own_checkpoint.IMAGE_PREFIX], result.training.adapter.projector
        put(average.values, *parts)
        standardise(result.loaded, parts[1])
        weights = {name: value.detach() for name, value in by_file_key(*parts).items()}
        save_state(folder / "subject_encoder.pt", {"weights": weights})
        logger.info("subject encoder at step %d", step)

    parameters = kept | {f"readout.{name}": value for name, value in readout.named_parameters()}
    schedule = Schedule(rate, steps, seconds, decay_from=0.5, average_decay=0.99)
    train(parameters, loss_of, schedule, folder, seed, resume, export)


def by_file_key(encoder: nn.Module, projector: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of both modules under the names that files give them."""
    modules = {own_checkpoint.IMAGE_PREFIX: encoder, PROJECTOR_PREFIX: projector}
    return {prefix + name: value for prefix, module in modules.items() for name, value in module.named_parameters()}


@torch.no_grad()
def standardise(loaded: LoadedCheckpoint, projector: nn.Module, count: int = 256, seed: int = 98) -> None:
    """Scales the last norm so that the tokens have a mean square of 1, as those of a prompt: the readout likes small ones."""
    generator = torch.Generator().manual_seed(seed)
    pictures = reference_pictures(procedural.sample(count, generator), generator)[0][:, 0]
    size = torch.cat([projector(encode_pictures(loaded, part)) for part in pictures.split(32)]).square().mean().sqrt()
    projector.norm_out.weight /= size
    projector.norm_out.bias /= size


@torch.no_grad()
def put(weights: dict[str, Tensor], encoder: nn.Module, projector: nn.Module) -> None:
    """Copies weights from `load` into image encoder and Resampler."""
    for name, value in by_file_key(encoder, projector).items():
        value.copy_(weights[name])


def load(file: Path) -> dict[str, Tensor]:
    """Weights that `run` wrote, by file key."""
    return load_state(file)["weights"]
