"""Sampling runs through ComfyUI's samplers, prepared so that they start and end where diffusers' DDIM does."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .observe import Observer


def one_call(model, x: Tensor, sigmas: Tensor, extra_args: dict | None = None, callback=None, disable=None) -> Tensor:
    """A k-diffusion sampler that calls the model once."""
    return model(x, sigmas[0].expand(x.shape[0]), **(extra_args or {}))


def _noise_for(latent: Tensor, sigma: Tensor) -> Tensor:
    """Noise for which ComfyUI's x = sigma * noise is `latent` after the model's own scaling by 1 / sqrt(sigma^2 + 1)."""
    return latent * (1.0 + sigma**2).sqrt() / sigma


def _sigmas(model: ModelPatcher, timesteps: list[int]) -> Tensor:
    return model.get_model_object("model_sampling").sigma(torch.tensor(timesteps, dtype=torch.float32))


def unet_outputs(
    model: ModelPatcher, observer: Observer, latent: Tensor, timestep: int, positive: list, negative: list
) -> list[tuple[Tensor, Tensor]]:
    """Call the model once, guided, on `latent` `[F, C, h, w]` as the UNet is to see it; returns what the UNet gave."""
    sigma = _sigmas(model, [timestep])
    comfy.sample.sample_custom(
        model,
        _noise_for(latent, sigma),
        2.0,
        comfy.samplers.KSAMPLER(one_call),
        torch.cat((sigma, sigma.new_zeros(1))),
        positive,
        negative,
        torch.zeros_like(latent),
        disable_pbar=True,
        seed=0,
    )
    return observer.outputs


def sample_ddim(model: ModelPatcher, latent: Tensor, *args, **kwargs) -> tuple[Tensor, list[Tensor]]:
    """`sample` with ComfyUI's `ddim`."""
    return sample(model, "ddim", latent, *args, **kwargs)


def sample(
    model: ModelPatcher,
    sampler: str | comfy.samplers.KSAMPLER,
    latent: Tensor,
    timesteps: list[int],
    guidance: float,
    positive: list,
    negative: list,
    ends_at_zero: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run one of ComfyUI's samplers from `latent` `[F, C, h, w]`. The last step goes to the noise level of timestep 0, or to none.

    Returns the timesteps at which the model was called, and the latent after each step in diffusers' scaling.
    """
    sigmas = _sigmas(model, timesteps)
    last = sigmas.new_zeros(1) if ends_at_zero else _sigmas(model, [0])
    sigmas = torch.cat((sigmas, last))
    before: list[Tensor] = []
    final = comfy.sample.sample_custom(
        model,
        _noise_for(latent, sigmas[0]),
        guidance,
        comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler,
        sigmas,
        positive,
        negative,
        torch.zeros_like(latent),
        callback=lambda step, denoised, x, total: before.append(x.detach().float().cpu()),
        disable_pbar=True,
        seed=0,
    )
    after = [*before[1:], model.model.process_latent_in(final).float().cpu()]
    called = model.get_model_object("model_sampling").timestep(sigmas[:-1]).long().cpu()
    return called, [x / (1.0 + sigma**2).sqrt() for x, sigma in zip(after, sigmas[1:], strict=True)]
