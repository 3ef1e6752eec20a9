"""What the trainer needs of ComfyUI: the encoders with gradients, and a call of the UNet through the very patches of inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.clip_model
import comfy.model_patcher
import torch
from torch import Tensor

from ..adapter import AdapterConfig, MagDiffAdapter
from .adapter_file import adapter_patcher
from .attach import apply_adapter
from .call import PartStrengths
from .conds import LatentsOfArea, SubjectLatents, SubjectTokens
from .loaded_checkpoint import LoadedCheckpoint
from .names import COND_LATENTS, COND_TOKENS


def _with_gradients(compute: Callable[[], Tensor]) -> Tensor:
    """ComfyUI's encoders add in place to tensors that the backward pass needs: keep copies of those."""
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        return compute()


def token_ids(loaded: LoadedCheckpoint, prompt: str) -> list[int]:
    """Ids of a prompt, padded, as CLIPTextEncode makes them."""
    (batch,) = loaded.clip.tokenize(prompt).values()
    return [token for token, _ in batch[0]]


def encode_text(loaded: LoadedCheckpoint, ids: Sequence[Sequence[int]]) -> Tensor:
    """`[B, L, D]` float32, what CLIPTextEncode gives for weights of 1."""
    (encoder,) = (child for child in loaded.clip.cond_stage_model.children())
    return _with_gradients(lambda: encoder([list(row) for row in ids])[0])


def encode_pictures(loaded: LoadedCheckpoint, pictures: Tensor) -> Tensor:
    """Last hidden states `[N, tokens, width]` of pictures `[N, H, W, 3]` in 0..1, as CLIPVisionEncode without crop."""
    vision = loaded.clip_vision
    pixels = comfy.clip_model.clip_preprocess(
        pictures, size=vision.image_size, mean=vision.image_mean, std=vision.image_std, crop=False
    )
    return _with_gradients(lambda: vision.model(pixel_values=pixels)[0])


class TrainingModel:
    """A base with an adapter attached as Apply MagDiff Adapter does it, both trainable."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher, weights: dict[str, Tensor], config: AdapterConfig) -> None:
        loaded = adapter_patcher(weights, config)
        self.adapter: MagDiffAdapter = loaded.patcher.model.requires_grad_(True)
        self.base = model.model
        self.base.diffusion_model.requires_grad_(True)
        self.patcher = apply_adapter(model, loaded, PartStrengths())

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        tokens: SubjectTokens | None = None,
        latents: SubjectLatents | None = None,
    ) -> Tensor:
        """The UNet's output (v or eps) for noisy latents.

        Args:
            x: `[B, F, C, h, w]`, already at the variance that the UNet expects.
            timestep: `[B]` whole numbers 0..999.
            context: `[B, L, D]` text, one row a clip.
            tokens, latents: with one row a clip, or None.
        """
        clips, frames = x.shape[:2]
        self.patcher.pre_run()
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)["transformer_options"]
        sampling = self.base.model_sampling
        sigma = sampling.sigmas[timestep].repeat_interleave(frames)
        options.update(wrappers=self.patcher.wrappers, cond_or_uncond=[0] * clips, sigmas=sigma)
        conds = {}
        if tokens is not None:
            conds[COND_TOKENS] = tokens
        if latents is not None:
            conds[COND_LATENTS] = LatentsOfArea(latents, None)
        flat = x.flatten(0, 1)
        wide = sigma[:, None, None, None]
        # apply_model scales its input and turns the output into a picture; both are undone here.
        scale = (wide**2 + 1).sqrt()
        denoised = self.base.apply_model(
            flat * scale, sigma, None, context.repeat_interleave(frames, 0), None, options, **conds
        )
        return ((flat / scale - denoised) * scale / wide).unflatten(0, (clips, frames))

    def signal_and_noise(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of clean latent and noise in the input at each timestep, `[B]` each; their squares sum to 1."""
        sigma = self.base.model_sampling.sigmas[timestep]
        return 1 / (sigma**2 + 1).sqrt(), sigma / (sigma**2 + 1).sqrt()
