"""The noise schedule that weights were trained with, as ComfyUI's `model_sampling`.

Beside Stable Diffusion's own there is the linear one (AnimateDiff), zero terminal signal (Lin et al. 2024), and a scale of the
latents that falls with the noise (VideoCrafter, DynamiCrafter: `x_t = sqrt(a_t) s_t x_0 + sqrt(1 - a_t) e`). In ComfyUI's terms,
`x_0 + sigma e`, such a scale is another sigma, `sqrt(1 - a_t) / (sqrt(a_t) s_t)`, and another factor in front of the input; so
every sampler takes it as it is, and their DDIM with its rescaling of the prediction is the same step.
"""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete, reshape_sigma
from torch import Tensor

from ..config import LINEAR, AdapterConfig, ScheduleConfig

BETA_START, BETA_END, STEPS = 0.00085, 0.012, 1000
LAST_SIGNAL = 4.8973451890853435e-08
"""What core puts in place of a terminal signal of 0, by which it would have to divide."""


def signals(schedule: ScheduleConfig) -> tuple[Tensor, Tensor]:
    """`sqrt(a_t)` and the scale `s_t` of every step, `[1000]` float64 each."""
    power = 1.0 if schedule.beta == LINEAR else 0.5
    betas = torch.linspace(BETA_START**power, BETA_END**power, STEPS, dtype=torch.float64) ** (1.0 / power)
    signal = torch.cumprod(1.0 - betas, dim=0).sqrt()
    if schedule.zero_terminal_snr:
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        signal[-1] = LAST_SIGNAL**0.5
    scale = torch.full_like(signal, schedule.base_scale)
    turn = min(schedule.turning_step, STEPS)
    scale[:turn] = torch.linspace(1.0, schedule.base_scale, schedule.turning_step, dtype=torch.float64)[:turn]
    return signal, scale


class AdapterSampling(ModelSamplingDiscrete):
    """The schedule of an adapter; between two of its steps the factors are interpolated."""

    def __init__(self, schedule: ScheduleConfig):
        super().__init__()
        # What `install` took the place of; in a tuple, so that it is no part of this module.
        self.before: tuple = (None,)
        signal, scale = signals(schedule)
        noise = (1.0 - signal**2).sqrt()
        self.zsnr = schedule.zero_terminal_snr
        self.set_sigmas(noise / (signal * scale))
        self.register_buffer("log_signal", signal.log().float())
        self.register_buffer("log_noise", noise.log().float())

    def shares(self, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """`sqrt(a)` and `sqrt(1 - a)` at `sigma`, in a shape that multiplies `like`."""
        level = sigma.to(self.log_sigmas).log()
        above = torch.searchsorted(self.log_sigmas, level).clamp(1, STEPS - 1)
        below = above - 1
        start, end = self.log_sigmas[below], self.log_sigmas[above]
        weight = ((level - start) / (end - start)).clamp(0.0, 1.0)
        tables = (self.log_signal, self.log_noise)
        found = (torch.lerp(table[below], table[above], weight).exp() for table in tables)
        return tuple(reshape_sigma(share.to(sigma), like.ndim) for share in found)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        _, noise_share = self.shares(sigma, noise)
        return noise * (noise_share / reshape_sigma(sigma, noise.ndim))

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        sigma = reshape_sigma(sigma, noise.ndim)
        if max_denoise:
            # The model is to see the noise as it is.
            _, noise_share = self.shares(sigma, noise)
            return noise * (sigma / noise_share) + latent_image
        return noise * sigma + latent_image


class AdapterEps(AdapterSampling, EPS):
    """For weights that predict the noise."""


class AdapterV(AdapterSampling, V_PREDICTION):
    """For weights that predict v = sqrt(a) e - sqrt(1 - a) s x_0."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        signal, noise = self.shares(sigma, model_output)
        scale = noise / (reshape_sigma(sigma, model_output.ndim) * signal)
        return model_input * signal**2 - model_output * (noise / scale)


def sampling_of(config: AdapterConfig) -> AdapterSampling | None:
    """The `model_sampling` for weights with this configuration; None where the base's own is right."""
    if config.schedule == ScheduleConfig():
        return None
    return (AdapterV if config.prediction == "v" else AdapterEps)(config.schedule)


def install(model: ModelPatcher, config: AdapterConfig) -> None:
    """Give `model` (a clone of our own) the schedule of an adapter, where it is another than the base's."""
    sampling = sampling_of(config)
    if sampling is not None:
        sampling.before = (model.object_patches.get("model_sampling"),)
        model.add_object_patch("model_sampling", sampling)


def uninstall(model: ModelPatcher) -> None:
    """Take the schedule of `install` off `model`; one that another node had set before (ModelSamplingDiscrete) is back."""
    ours = model.object_patches.get("model_sampling")
    if isinstance(ours, AdapterSampling):
        del model.object_patches["model_sampling"]
        if ours.before[0] is not None:
            model.add_object_patch("model_sampling", ours.before[0])
