"""Parity of ReVideo's trajectory maps, and of what its scripts give to sampler and guider."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_base
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...motion import reference
from ...motion.motion_map import gaussian_line
from .fixture import Fixture

FPS_OFFSET = 1
"""Core's SVD embeds fps - 1, the released scripts fps as given."""


def _paths(case: dict, positions: Callable[..., Tensor]) -> Tensor:
    """Tracks of a case of drawn lines, `[F, N, 2]`."""
    args = case["args"]
    tracks = []
    for index in range(len(args["ps_h"])):
        start, end = (
            reference.scaled_point((args[f"{name}_h"][index], args[f"{name}_w"][index]), case["orig_wh"], case["work_wh"])
            for name in ("ps", "pe")
        )
        biases = (args["x_bias"], args["y_bias"]) if "x_bias" in args else (args["x_bias_all"][index], args["y_bias_all"][index])
        tracks.append(positions(start, end, case["num_frames"], *biases))
    return torch.stack(tracks, 1)


def _region(case: dict) -> Tensor:
    """Rectangles of a case together, `[H, W]`."""
    width, height = case["work_wh"]
    sides = [value if isinstance(value, list) else [value] for value in (case["args"][key] for key in ("s_h", "s_w", "e_h", "e_w"))]
    region = torch.zeros(height, width)
    for left, top, right, bottom in zip(*sides, strict=True):
        corners = (reference.scaled_point(point, case["orig_wh"], case["work_wh"]) for point in ((left, top), (right, bottom)))
        region = torch.maximum(region, reference.rectangle(*next(corners), *next(corners), width, height))
    return region


def compute_maps(fixture: Fixture) -> dict[str, Tensor]:
    """`C.*`: maps before and after the filter, drawn tracks, regions, and the filter."""
    line = gaussian_line()
    computed = {"C.gauss_kernel": torch.outer(line, line)}
    shown = fixture.meta["C.frames_in_flow_sel"]
    for name in ("C.single", "C.single2", "C.multi", "C.constant"):
        case = fixture.meta[name]
        width, height = case["work_wh"]
        drawn = "args" in case
        path = _paths(case, reference.line_positions) if drawn else fixture.stored[f"{name}.tracks_xy"][0]
        moves = reference.displacements(path, height, width, clip=not drawn)
        places = moves.transpose(0, 1).nonzero()
        computed[f"{name}.delta_indices"] = places.int()
        computed[f"{name}.delta_values"] = moves.transpose(0, 1)[tuple(places.T)]
        computed[f"{name}.flow_sel"] = reference.motion_map(path, height, width, clip=not drawn)[shown]
        if drawn:
            computed[f"{name}.tracks_drawn"] = _paths(case, reference.drawn_positions)[None].float()
            region = _region(case)
            computed[f"{name}.region_frame0"] = computed[f"{name}.masked_video_is_minus1"] = region
    return computed


def compute_schedules(fixture: Fixture) -> dict[str, Tensor]:
    """`D.*`: noise levels, the vector of frame rate, motion and noise, and the guidance of each frame."""
    sampling = comfy.model_sampling.ModelSamplingContinuousEDM()
    sampling.set_parameters(0.002, 700.0, 1.0)
    computed = {f"D.sigmas_{steps}": comfy.samplers.calculate_sigmas(sampling, "karras", steps) for steps in (15, 25)}
    for fps in (10, 6):
        embed = comfy.model_base.Timestep(256)
        numbers = {"fps": fps + FPS_OFFSET, "motion_bucket_id": 127, "augmentation_level": 0.02}
        model = type("Embedder", (), {"embedder": embed})
        computed[f"D.vector_fps{fps}_mb127_aug0.02"] = comfy.model_base.SVD_img2vid.encode_adm(model, **numbers)[0]
    computed["D.cfg_scale_14"] = torch.linspace(1.0, 4.0, 14)
    return computed
