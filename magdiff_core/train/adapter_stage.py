"""What is trained of an adapter and its base in each of the paper's stages, and the file that comes out of it.

"text-to-video": the layers along time, on the frozen base (VidRD, on which MagDiff builds). "magdiff": these, the image stream, its
projector and the subject branch, and of the base the self- and cross-attention with their norms, as differences (MagDiff,
supplement B and D). ResBlocks, autoencoder and encoders are frozen in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapter import BASE_PREFIX, PARTS, AdapterConfig, ImageEncoderConfig
from ..host.adapter_file import weight_hash
from ..host.training import TrainingModel
from ..host.training_base import TrainingBase
from ..host.training_encode import conditioning
from .adapter_batches import ClipBatch
from .checkpoint import write_atomically
from .engine import PRECISIONS, Engine
from .new_adapter import new_adapter_weights

TEXT_TO_VIDEO = "text-to-video"
MAGDIFF = "magdiff"
STAGES = (TEXT_TO_VIDEO, MAGDIFF)
TRAINED_OF_BASE = re.compile(r"\.transformer_blocks\.\d+\.(attn1|attn2|norm1|norm2)\.")
IMAGE_PARTS = ("apa.", "projector.")
"""They belong together: an image stream without a projector reads the encoder's own tokens."""
HEAD_WIDTH = 64
PROJECTOR_DEPTH = 4
"""Released code."""
START_OF_ALPHA_IMAGE = 1.5
"""Released code; alpha_text starts at 1."""


class Objective(nn.Module):
    """Base and adapter as one module, all calls of which go through `forward`, so that an engine can share it among devices."""

    def __init__(self, training: TrainingModel, layer: str) -> None:
        super().__init__()
        self.unet = training.base.diffusion_model
        self.adapter = training.adapter
        self.layer = layer
        self._training = (training,)  # not a part: only what it is made of is

    def forward(self, batch: ClipBatch | None, common: dict[str, Tensor], *to_denoise) -> Tensor:
        """Mean square error of eps or v; without a batch the clean latents of `TrainingModel.denoise(*to_denoise)`."""
        (training,) = self._training
        if batch is None:
            return training.denoise(*to_denoise)[0].float()
        clean = training.base.process_latent_in(batch.latents)
        sigma = training.base.model_sampling.sigmas[batch.timestep]
        x = clean + sigma[:, None, None, None, None] * batch.noise
        tokens, latents = conditioning(batch.subjects, common, self.layer, clean.shape[1])
        _, output = training.denoise(x, sigma, batch.text, tokens, latents)
        return nn.functional.mse_loss(output.float(), training.target(clean, batch.noise, sigma))


class AdapterStage:
    """A base with an adapter, new where it had none, of which exactly the tensors of `stage` can learn.

    Args:
        base: from `training_base`; it is changed.
        image_width: width of the image encoder's tokens; only stage "magdiff" needs it.
        name: of the base, for people.
        engine: its precision is that of the frozen matrices; trained tensors are float32.
    """

    def __init__(
        self,
        base: TrainingBase,
        stage: str,
        engine: Engine,
        frames: int = 8,
        image_width: int | None = None,
        name: str = "",
        checkpoint_layers: bool = False,
        seed: int = 0,
        licence: str = "",
    ) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}: choose one of {', '.join(STAGES)}")
        torch.manual_seed(seed)
        base.unet.float()
        self.stage = stage
        self.originals = {key: value.clone() for key, value in self._base_weights(base, stage).items()}
        self.differences = base.differences
        with torch.no_grad():
            weights = dict(base.unet.named_parameters())
            for key, difference in base.differences.items():
                weights[key] += difference
        config = _config(base, stage, image_width, name)
        adapter = _with_new_parts(base, config, stage)
        base.patcher.model.manual_cast_dtype = None
        base.unet.dtype = torch.float32
        self.training = TrainingModel(base.patcher, adapter, config, checkpoint_layers)
        self.config = replace(config, frames=frames, licence=licence or config.licence)
        self.objective = Objective(self.training, config.image_encoder.layer)
        parts = PARTS if stage == MAGDIFF else ("temporal.",)
        for key, value in self.training.adapter.named_parameters():
            value.requires_grad_(key.startswith(parts))
        for key, value in base.unet.named_parameters():
            value.requires_grad_(key in self.originals)
            if not value.requires_grad and value.ndim > 1:
                value.data = value.data.to(PRECISIONS[engine.precision])
        whole_adapter, trained = self.training.adapter.state_dict(), self.parameters()
        self.frozen = {key: value.detach().clone() for key, value in whole_adapter.items() if key not in trained}
        self.training.base.to(engine.device)
        self.training.adapter.to(engine.device)
        engine.module = self.objective

    @staticmethod
    def _base_weights(base: TrainingBase, stage: str) -> dict[str, Tensor]:
        if stage != MAGDIFF:
            return {}
        return {key: value.detach() for key, value in base.unet.named_parameters() if TRAINED_OF_BASE.search(key)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, under the names of the adapter file; those of `base.*` are whole weights, not differences."""
        modules = {"": self.training.adapter, BASE_PREFIX: self.training.base.diffusion_model}
        return {
            prefix + key: value
            for prefix, module in modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        }

    def adapter_weights(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor of the adapter file. `values`: the trained ones, by the names of `parameters`."""
        weights = dict(self.frozen)
        weights |= {BASE_PREFIX + key: value for key, value in self.differences.items() if key not in self.originals}
        for key, value in values.items():
            if key.startswith(BASE_PREFIX):
                value = value - self.originals[key.removeprefix(BASE_PREFIX)].to(value)
            weights[key] = value
        return weights

    def write(self, path: Path, values: Mapping[str, Tensor], trained_from: str, dtype: torch.dtype = torch.float32) -> None:
        """Write the adapter file whole, or not at all. `values` as in `adapter_weights`."""
        hashes = dict(self.config.base_hashes) | {key: weight_hash(value) for key, value in self.originals.items()}
        config = replace(self.config, base_hashes=hashes, trained_from=trained_from)
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in self.adapter_weights(values).items()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, config.to_metadata()))


def _config(base: TrainingBase, stage: str, image_width: int | None, name: str) -> AdapterConfig:
    """Of the adapter to start from, or a new one; the image encoder is free as long as nothing was trained with another."""
    config = base.config or AdapterConfig(base=name, prediction=base.prediction, latent_scale=base.latent_scale)
    if stage != MAGDIFF:
        return config
    if any(key.startswith(IMAGE_PARTS) for key in base.weights):
        if image_width != config.image_encoder.width:
            raise ValueError(
                f"the image encoder gives tokens {image_width} wide, the adapter to start from was trained with "
                f"{config.image_encoder.width}: use that image encoder"
            )
        return config
    if image_width is None:
        raise ValueError(f"stage {MAGDIFF} trains the image stream: it needs an image encoder")
    return replace(
        config,
        projector_heads=max(1, _token_width(base) // HEAD_WIDTH),
        image_encoder=ImageEncoderConfig(image_width, layer="last", crop=False, channels="rgb"),
    )


def _with_new_parts(base: TrainingBase, config: AdapterConfig, stage: str) -> dict[str, Tensor]:
    """The adapter's weights, and fresh ones for each part of the stage that it lacks."""
    groups = [("temporal.",)] if stage == TEXT_TO_VIDEO else [("temporal.",), IMAGE_PARTS, ("hfa.",)]
    missing = sum((group for group in groups if not any(key.startswith(group) for key in base.weights)), ())
    if not missing:
        return base.weights
    width = _token_width(base)
    config = replace(config, projector_heads=max(1, width // HEAD_WIDTH))
    fresh = new_adapter_weights(
        base.unet.state_dict(), config, width, key_gain=1.0, value_gain=1.0, projector_depth=PROJECTOR_DEPTH
    )
    for key, value in fresh.items():
        if key.endswith(".alpha_image"):
            value.fill_(START_OF_ALPHA_IMAGE)
    return {key: value for key, value in fresh.items() if key.startswith(missing)} | base.weights


def _token_width(base: TrainingBase) -> int:
    return next(value.shape[1] for key, value in base.unet.state_dict().items() if key.endswith(".attn2.to_k.weight"))
