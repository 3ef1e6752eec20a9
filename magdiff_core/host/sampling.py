"""The paper's sampler: DDIM on evenly spaced steps, as the stock KSampler runs it."""

from __future__ import annotations

import comfy.sample
import comfy.utils
import latent_preview

from .attach import adapter_of
from .conds import attached

SAMPLER = "ddim"
SCHEDULER = "ddim_uniform"


def check_adapter_is_there(model, *conditionings: list) -> None:
    """Raise ValueError when a conditioning carries MagDiff data and `model` has no adapter, so that it would be ignored."""
    if adapter_of(model) is None and any(attached(extras.get("model_conds", {})) for c in conditionings for _, extras in c):
        raise ValueError(
            "the conditioning carries a MagDiff subject, but MODEL has no MagDiff adapter: wire the output of Apply MagDiff Adapter"
        )


def sample(model, positive: list, negative: list, latent: dict, seed: int, steps: int, cfg: float, denoise: float) -> dict:
    """Sample a LATENT `[F, C, h, w]`, frames in the batch: what KSampler(ddim, ddim_uniform) gives for the same settings."""
    check_adapter_is_there(model, positive, negative)
    ratios = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *(latent.get(name) for name in ratios))
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    samples = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        SAMPLER,
        SCHEDULER,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = {key: value for key, value in latent.items() if key not in ratios}
    return {**out, "samples": samples}
