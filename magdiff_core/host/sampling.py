"""The paper's sampler: DDIM on evenly spaced steps, as the stock KSampler runs it.

Weights that were trained down to pure noise (zero terminal signal) have to start there: for them the steps are those of
`sgm_uniform`, which count from the last timestep down ("trailing").
"""

from __future__ import annotations

import comfy.sample
import comfy.utils
import latent_preview

from .attach import adapter_of
from .conds import attached
from .names import FPS

SAMPLER = "ddim"
SCHEDULER = "ddim_uniform"
TRAILING_SCHEDULER = "sgm_uniform"


def check_adapter_is_there(model, *conditionings: list) -> None:
    """Raise ValueError when a conditioning carries MagDiff data and `model` has no adapter, so that it would be ignored."""
    if adapter_of(model) is None and any(attached(extras.get("model_conds", {})) for c in conditionings for _, extras in c):
        raise ValueError(
            "the conditioning carries a MagDiff subject, but MODEL has no MagDiff adapter: wire the output of Apply MagDiff Adapter"
        )


def scheduler_of(model) -> str:
    """The scheduler of core that `model` was trained for."""
    adapter = adapter_of(model)
    trailing = adapter is not None and adapter.model.config.schedule.zero_terminal_snr
    return TRAILING_SCHEDULER if trailing else SCHEDULER


def at_frame_rate(model, frame_rate: float):
    """A clone of `model` that is told this frame rate (or stride, as it was trained); `model` itself for 0.

    Raises ValueError when the adapter on it knows none.
    """
    if not frame_rate:
        return model
    adapter = adapter_of(model)
    temporal = None if adapter is None else adapter.model.temporal
    if temporal is None or temporal.fps_embedding is None:
        raise ValueError(
            f"frame_rate is {frame_rate}, but this model was not trained with one (VideoCrafter and DynamiCrafter were): "
            "set it to 0"
        )
    model = model.clone()
    model.model_options["transformer_options"][FPS] = float(frame_rate)
    return model


def sample(
    model,
    positive: list,
    negative: list,
    latent: dict,
    seed: int,
    steps: int,
    cfg: float,
    denoise: float,
    frame_rate: float = 0.0,
) -> dict:
    """Sample a LATENT `[F, C, h, w]`, frames in the batch: what KSampler gives for the same settings with `ddim` and the scheduler
    of `scheduler_of(model)`. Raises ValueError as `check_adapter_is_there` and `at_frame_rate` do."""
    check_adapter_is_there(model, positive, negative)
    model = at_frame_rate(model, frame_rate)
    ratios = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *(latent.get(name) for name in ratios))
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    samples = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        SAMPLER,
        scheduler_of(model),
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
