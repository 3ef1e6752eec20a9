"""Parity of ReVideo's control branch: condition encoders, SAFM, trunk and zero convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from ...weights.revideo import read_control
from ..revideo_model import ReVideoControlModel, build_control
from .fixture import Fixture, part_of


def control_of(fixture: Fixture, prefix: str, config: dict) -> ReVideoControlModel:
    """The control branch of the weights that begin with `prefix`; `config` of the JSON gives the width of a head."""
    return build_control(read_control(part_of(fixture.weights, prefix)), config["num_head_channels"])


def compute(fixture: Fixture) -> dict[str, Tensor]:
    """`A.mid.*` and `A.out.*` from `A.in.*`: two clips, without and with the picture, of one set of hints."""
    about = fixture.meta["A"]
    clips, frames = about["B"], about["T"]
    control = control_of(fixture, "A.sd.", about["config"])
    given = part_of(fixture.inputs, "A.in.")
    region, t = given["region"], given["timesteps"]

    computed: dict[str, Tensor] = {}
    content = control.content_encoder(given["video"][0].transpose(0, 1))
    motion = control.motion_encoder(given["flow"])
    gamma = control.safm.gamma(region, t[:1])
    before: list[Tensor] = []
    hook = control.safm.conv_final.register_forward_pre_hook(lambda layer, args: before.append(args[0]))
    fused = control.safm.fuse(content, motion, gamma)
    hook.remove()
    added = control(given["x"], t, given["context"], given["y"], fused, frames, {})

    computed["A.mid.content_emb"], computed["A.mid.motion_emb"] = content, motion
    # The file has a row for each clip.
    for name, value in (("w", 1.0 - gamma), ("fused_pre_final", before[0]), ("fused", fused)):
        computed[f"A.mid.{name}"] = value.repeat(clips, 1, 1, 1)
    for sigma in (700, 0.002):
        computed[f"A.mid.w_sigma_{sigma}"] = 1.0 - control.safm.gamma(region[:1], 0.25 * torch.tensor([float(sigma)]).log())
    for index, value in enumerate(added["output"]):
        computed[f"A.out.down.{index}"] = value
    computed["A.out.mid"] = added["middle"][0]
    return computed
