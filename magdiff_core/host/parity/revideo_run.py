"""Parity of a ReVideo sampling run: a small SVD out of ComfyUI's own classes, its Euler sampler, its guider and linear guidance."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...motion.hints import ControlHints
from ..control_object import ReVideoControl
from ..revideo_base import VideoModel, video_model
from .fixture import Fixture, part_of
from .revideo_branch import control_of
from .runs import one_call


class StoredVector(comfy.model_base.SVD_img2vid):
    """SVD whose vector of frame rate, motion and noise is given ready-made: that of a small file is narrower than SVD's."""

    def encode_adm(self, **kwargs) -> Tensor:
        return kwargs["vector"]


class StoredVectorModel(VideoModel):
    model_class = StoredVector


@dataclass(frozen=True, eq=False)
class ReadyHints:
    """Hints that are not made from anything: as stored."""

    ready: ControlHints

    @property
    def frames(self) -> int:
        return self.ready.frames

    @property
    def pixels(self) -> int:
        return self.ready.content[0, 0].numel()

    def hints(self, width: int, height: int) -> ControlHints:
        return self.ready


def model_of(fixture: Fixture) -> ModelPatcher:
    """The UNet of the file in ComfyUI."""
    head_channels = fixture.meta["B"]["config_unet"]["num_head_channels"]
    return video_model(part_of(fixture.weights, "B.unet."), head_channels, StoredVectorModel, torch.float32)


def control_object(fixture: Fixture) -> ReVideoControl:
    """The control branch of the file with its hints."""
    patcher = comfy.model_patcher.CoreModelPatcher(
        control_of(fixture, "B.ctrl.", fixture.meta["B"]["config_ctrl"]),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    given = part_of(fixture.inputs, "B.in.")
    hints = ControlHints(given["video"][0].transpose(0, 1), given["flow"], given["region"])
    return ReVideoControl(patcher, ReadyHints(hints))


def conditionings(fixture: Fixture, control: ReVideoControl | None) -> tuple[list, list]:
    """Positive and negative; the negative has no picture, and the same control."""
    given = part_of(fixture.inputs, "B.in.")
    shared = {"vector": given["vector"]} if control is None else {"vector": given["vector"], "control": control}
    positive = [[given["crossattn"], {**shared, "concat_latent_image": given["concat"]}]]
    negative = [
        [torch.zeros_like(given["crossattn"]), {**shared, "concat_latent_image": torch.zeros_like(given["concat"])}],
    ]
    return positive, negative


def run(model: ModelPatcher, conds: tuple[list, list], noise: Tensor, sampler, sigmas: Tensor, guidance: tuple[float, float]):
    """Sample with ComfyUI; returns the latent in the model's scaling, and [negative; positive] denoised at each step."""
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    denoised: list[Tensor] = []

    def keep(args: dict) -> Tensor:
        denoised.append(torch.cat((args["uncond_denoised"], args["cond_denoised"])))
        return args["denoised"]

    (model,) = VideoLinearCFGGuidance().patch(model, guidance[0])
    model.set_model_sampler_post_cfg_function(keep)
    empty = torch.zeros_like(noise)
    latent = comfy.sample.sample_custom(model, noise, guidance[1], sampler, sigmas, *conds, empty, disable_pbar=True, seed=0)
    return model.model.process_latent_in(latent), denoised


def compute(fixture: Fixture) -> dict[str, Tensor]:
    """`B.single.*`, `B.step*` and `B.out.latent`."""
    about = fixture.meta["B"]
    model, control = model_of(fixture), control_object(fixture)
    noise = fixture.inputs["B.in.noise"]
    guidance = (about["cfg_min"], about["cfg_max"])
    computed: dict[str, Tensor] = {}
    for name, conds in (("with", conditionings(fixture, control)), ("no", conditionings(fixture, None))):
        _, (once,) = run(model, conds, noise, comfy.samplers.KSAMPLER(one_call), torch.tensor([5.0, 0.0]), guidance)
        computed[f"B.single.denoised_{name}_ctrl"] = once

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", about["num_steps"])
    euler = comfy.samplers.sampler_object("euler")
    latent, denoised = run(model, conditionings(fixture, control), noise, euler, sigmas, guidance)
    for step, value in enumerate(denoised):
        computed[f"B.step{step}.sigma"] = sigmas[step : step + 1]
        computed[f"B.step{step}.denoised_uncond_cond"] = value
    computed["B.out.latent"] = latent
    return computed
