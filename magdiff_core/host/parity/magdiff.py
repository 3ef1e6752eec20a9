"""Parity of the released MagDiff and VidRD: `sd.unet.*`, `sd.enclip_projector.*` and what their own code made of them."""

from __future__ import annotations

import dataclasses

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...weights.released import MAGDIFF, layout_of, read_released
from ...weights.unet_names import UnetNames
from ..adapter_file import adapter_patcher
from ..attach import adapter_of, apply_adapter
from ..call import PartStrengths
from ..conds import EDIT, SubjectLatents, SubjectTokens, attach
from . import layers
from .fixture import Fixture
from .observe import Observer
from .runs import sample_ddim, unet_outputs
from .small_model import small_model


def recognises(fixture: Fixture) -> bool:
    """Whether this module does files like `fixture`."""
    return layout_of(fixture.weights) is not None


def build_model(fixture: Fixture) -> ModelPatcher:
    """The file's UNet in ComfyUI with the file's adapter on it."""
    released = read_released(fixture.weights)
    base = small_model(released.unet, fixture.meta["ldm_equivalent"], fixture.meta["scheduler"])
    config = released.config
    if "resampler_config" in fixture.meta:
        config = dataclasses.replace(config, projector_heads=fixture.meta["resampler_config"]["heads"])
    return apply_adapter(base, adapter_patcher(released.adapter, config), PartStrengths())


def conditionings(fixture: Fixture, model: ModelPatcher, frames: int) -> tuple[list, list]:
    """Positive and negative of the first `frames` frames. Both carry the subject, as in the released code."""
    inputs = fixture.inputs
    entries = {}
    if layout_of(fixture.weights) == MAGDIFF:
        if "subject_raw" in inputs:
            latents = inputs["subject_raw"]
        else:
            latents = model.model.process_latent_out(inputs["subject_latent"])[0].transpose(0, 1)
        entries["tokens"] = SubjectTokens({"last": inputs["clip_tokens"][None, :frames]}, black_entry=False)
        entries["latents"] = SubjectLatents((latents[None, :frames],), frames, EDIT)
    positive, negative = ([[inputs[name], {}]] for name in ("text_cond", "text_uncond"))
    return attach(positive, **entries), attach(negative, **entries)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    """Every tensor of the file that this pack can make, under its name and in its layout."""
    model = build_model(fixture)
    stored, inputs, scheduler = fixture.stored, fixture.inputs, fixture.meta["scheduler"]
    latent = inputs["latent"][0].transpose(0, 1)
    frames, _, height, width = latent.shape
    timestep = int(inputs["timestep"])
    conds = conditionings(fixture, model, frames)
    computed: dict[str, Tensor] = {}

    names = UnetNames.of(key.removeprefix("unet.") for key in fixture.weights)
    observed = model.clone()
    with Observer(observed) as observer:
        layers.observe(stored, observer, observed, adapter_of(observed).model, names, frames, (height, width))
        (out,) = unet_outputs(observed, observer, latent, timestep, *conds)
    computed.update(observer.values)
    computed["out.eps"] = _as_video(out)

    if "f1.eps" in stored:
        with Observer(model) as observer:
            (out,) = unet_outputs(model, observer, latent[:1], timestep, *conditionings(fixture, model, 1))
        computed["f1.eps"] = _as_video(out)

    if "ddim.timesteps" in stored:
        with Observer(model) as observer:
            timesteps, latents = sample_ddim(
                model,
                latent,
                stored["ddim.timesteps"].tolist(),
                scheduler["guidance_scale"],
                *conds,
                ends_at_zero=scheduler["set_alpha_to_one"],
            )
        computed["ddim.timesteps"] = timesteps
        computed["ddim.noise_pred"] = torch.stack([_as_video(out) for out in observer.outputs])
        computed["ddim.latents"] = torch.stack([x.transpose(0, 1)[None] for x in latents])
    return computed


def _as_video(out: tuple[Tensor, Tensor]) -> Tensor:
    """(negative, positive), each `[F, C, h, w]` -> `[2, C, F, h, w]`."""
    return torch.stack(out).transpose(1, 2)
