"""Parity of DynamiCrafter: `sd.model.diffusion_model.*`, `sd.image_proj_model.*` and what its own code made of them."""

from __future__ import annotations

import dataclasses

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import sample_euler_ancestral
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...config import AdapterConfig
from ...weights.checkpoint import ReadCheckpoint
from ...weights.lvdm import is_lvdm, read_lvdm
from ..adapter_file import adapter_patcher
from ..attach import adapter_of, apply_adapter
from ..call import PartStrengths
from ..conds import GENERATE, SubjectLatents, SubjectTokens, attach
from ..names import FPS
from . import dynamicrafter_layers
from .fixture import Fixture
from .observe import Observer
from .runs import sample, unet_outputs
from .small_model import small_model

OTHER_RATE = 6
"""Frame stride of the stored `out.eps_fs6`."""
SHARED_TOKENS = 16


def recognises(fixture: Fixture) -> bool:
    """Whether this module does files like `fixture`."""
    return is_lvdm(fixture.weights)


def build_model(fixture: Fixture, ready_tokens: bool = False) -> ModelPatcher:
    """The file's UNet in ComfyUI with the file's adapter on it; `ready_tokens`: without projector, for tokens that passed it."""
    released = read_lvdm(fixture.weights)
    about, scheduler = fixture.meta["unet_config"], fixture.meta["scheduler"]
    numbers = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": scheduler.get("prediction_type", "epsilon"),
    }
    base = small_model(released.unet, {"num_head_channels": about["num_head_channels"]}, numbers)
    weights, config = _adapter(fixture, released, ready_tokens)
    return apply_adapter(base, adapter_patcher(weights, config), PartStrengths())


def _adapter(fixture: Fixture, released: ReadCheckpoint, ready_tokens: bool) -> tuple[dict[str, Tensor], AdapterConfig]:
    projector = fixture.meta["resampler_config"]
    config = dataclasses.replace(released.config, projector_heads=projector["heads"], fps=float(fixture.inputs["fs"]))
    if not ready_tokens:
        return released.adapter, config
    config = dataclasses.replace(
        config, image_encoder=dataclasses.replace(config.image_encoder, width=projector["output_dim"])
    )
    return {key: value for key, value in released.adapter.items() if not key.startswith("projector.")}, config


def conditionings(fixture: Fixture, model: ModelPatcher, frames: int, tokens: Tensor | None = None) -> tuple[list, list]:
    """Positive and negative: both carry the picture's latent, each its own tokens. `tokens` `[2, L, width]`: those of positive and
    negative instead of what the image encoder gave."""
    inputs = fixture.inputs
    if tokens is None:
        tokens = torch.cat((inputs["clip_tokens"], inputs["clip_tokens_uncond"]))
    latent = model.model.process_latent_out(inputs["image_latent"])[:, :, 0]
    entries = {
        "tokens": SubjectTokens({"last": tokens[None]}, black_entry=False, negative_entry=True),
        "latents": SubjectLatents((latent[None],), frames, GENERATE),
    }
    positive, negative = ([[inputs[name], {}]] for name in ("text_cond", "text_uncond"))
    return attach(positive, **entries), attach(negative, negative=True, **entries)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    """Every tensor of the file that this pack can make, under its name and in its layout."""
    model = build_model(fixture)
    stored, inputs = fixture.stored, fixture.inputs
    latent = inputs["latent"][0].transpose(0, 1)
    frames, _, height, width = latent.shape
    timestep = int(inputs["timestep"])
    conds = conditionings(fixture, model, frames)
    computed: dict[str, Tensor] = {}

    observed = model.clone()
    with Observer(observed) as observer:
        dynamicrafter_layers.observe(stored, observer, observed, adapter_of(observed).model, frames, (height, width))
        (out,) = unet_outputs(observed, observer, latent, timestep, *conds)
    computed.update(observer.values)
    computed["out.eps"] = _as_video(out)
    tokens = computed.pop("res.both")
    computed["res.tokens"], computed["res.tokens_uncond"] = tokens[:1], tokens[1:]

    if "out.eps_fs6" in stored:
        other = model.clone()
        other.model_options["transformer_options"][FPS] = OTHER_RATE
        with Observer(other) as observer:
            (out,) = unet_outputs(other, observer, latent, timestep, *conds)
        computed["out.eps_fs6"] = _as_video(out)[1:]
    if "out.eps_shared16" in stored:
        shared = build_model(fixture, ready_tokens=True)
        with Observer(shared) as observer:
            few = conditionings(fixture, shared, frames, tokens[:, :SHARED_TOKENS])
            (out,) = unet_outputs(shared, observer, latent, timestep, *few)
        computed["out.eps_shared16"] = _as_video(out)[1:]
    if "ddim.timesteps" in stored:
        computed.update(_ddim(fixture, model, latent, conds))
    return computed


def _ddim(fixture: Fixture, model: ModelPatcher, latent: Tensor, conds: tuple[list, list]) -> dict[str, Tensor]:
    """Both stored runs: without noise, and with as much in each step as the official script adds (eta 1).

    The latter is ComfyUI's ancestral Euler: its standard deviation, times sqrt(a) of the step's end, is DDIM's.
    """
    stored = fixture.stored
    guidance, timesteps = fixture.meta["scheduler"]["guidance_scale"], stored["ddim.timesteps"].tolist()
    computed = {}
    called, latents = sample(model, "ddim", latent, timesteps, guidance, *conds, ends_at_zero=False)
    computed["ddim.timesteps"] = called
    computed["ddim.eta0.latents"] = _stacked(latents)

    given = iter(stored["ddim.step_noise"].float())
    used, deviations = [], []

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
        deviations.append(up / (1.0 + sigma_next**2).sqrt())
        used.append(next(given))
        return used[-1][0].transpose(0, 1)

    ancestral = comfy.samplers.KSAMPLER(sample_euler_ancestral, {"eta": 1.0, "noise_sampler": noise})
    with Observer(model) as observer:
        _, latents = sample(model, ancestral, latent, timesteps, guidance, *conds, ends_at_zero=False)
    uncond, cond = _as_video(observer.outputs[0])
    computed["ddim.eta1.noise_pred_guided_first"] = (uncond + guidance * (cond - uncond))[None]
    computed["ddim.eta1.latents"] = _stacked(latents)
    computed["ddim.step_noise"] = torch.stack(used)
    computed["ddim.sigmas"] = torch.stack(deviations)
    return computed


def _stacked(latents: list[Tensor]) -> Tensor:
    return torch.stack([x.transpose(0, 1)[None] for x in latents])


def _as_video(out: tuple[Tensor, Tensor]) -> Tensor:
    """(negative, positive), each `[F, C, h, w]` -> `[2, C, F, h, w]`."""
    return torch.stack(out).transpose(1, 2)
