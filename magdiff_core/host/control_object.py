"""The control branch as a control object of ComfyUI: rides on CONDITIONING, chains with ControlNets, is sampled as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import comfy.controlnet
import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..motion.hints import ControlHints
from ..motion.safm import DIRECT_SUM, NO_TIME, SAFM
from .revideo_model import ReVideoControlModel
from .run_cache import NoCache, RunCache

PIXELS_PER_LATENT = 8
FRAMES_AT_ONCE = 4
"""Frames that go through a condition encoder together: it works at full size."""


class HintSource(Protocol):
    """What a control object is made for: `motion.hints.EditRequest`, or ready hints. `pixels` is about how large a frame is."""

    frames: int
    pixels: int

    def hints(self, width: int, height: int) -> ControlHints: ...


class ReVideoControl(comfy.controlnet.ControlBase):
    """One control branch with one request. The same object goes to positive and negative, so that core batches both.

    E_c, E_m and the region are computed once a sampling run, Gamma at every step. Nothing of them outlives the run.
    """

    def __init__(self, patcher: ModelPatcher, source: HintSource, fusion: str = SAFM):
        super().__init__()
        self.patcher = patcher
        self.source = source
        self.fusion = fusion
        self._model = None
        self._cache: RunCache | type[NoCache] = NoCache

    @property
    def control_model(self) -> ReVideoControlModel:
        return self.patcher.model

    def pre_run(self, model, percent_to_timestep_function: Callable[[float], float]) -> None:
        super().pre_run(model, percent_to_timestep_function)
        check_base(model.diffusion_model, self.control_model)
        self._model = model
        self._cache = RunCache()
        # Core calls cleanup() only after a run that ended well; this callback also comes after an error or a cancellation.
        key = f"magdiff_control_{id(self)}"

        def end_run(patcher: ModelPatcher) -> None:
            patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
            self._end_run()

        model.current_patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
        model.current_patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, end_run)

    def _end_run(self) -> None:
        self._model = None
        self._cache = NoCache

    def cleanup(self) -> None:
        self._end_run()
        super().cleanup()

    def copy(self) -> ReVideoControl:
        """Another control object around the same weights and request; not chained to anything."""
        other = ReVideoControl(self.patcher, self.source, self.fusion)
        self.copy_to(other)
        return other

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> ReVideoControl:
        other = self.copy()
        other.patcher = self.patcher.deepclone_multigpu(load_device)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other

    def get_models(self) -> list[ModelPatcher]:
        return [*super().get_models(), self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        first_layer = self.control_model.content_encoder.conv_in
        layer_output = FRAMES_AT_ONCE * first_layer.out_channels * self.source.pixels
        encoders = 3 * layer_output * comfy.model_management.dtype_size(dtype)
        return encoders + super().inference_memory_requirements(dtype)

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict):
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and (t[0] > self.timestep_range[0] or t[0] < self.timestep_range[1]):
            return previous
        sampling, dtype = self._model.model_sampling, self._model.get_dtype_inference()
        x = sampling.calculate_input(t, x_noisy)
        if cond.get("c_concat") is not None:
            x = torch.cat((x, cond["c_concat"].to(x)), 1)
        y = cond.get("y")
        frames = x_noisy.shape[0] // batched_number
        height, width = (PIXELS_PER_LATENT * side for side in x_noisy.shape[-2:])
        window = _window(transformer_options, frames, self.source.frames)
        added = self.control_model(
            x.to(dtype),
            sampling.timestep(t).float(),
            cond["c_crossattn"].to(x.device, dtype),
            None if y is None else y.to(x.device, dtype),
            self._fused(width, height, window, t[:1], x.device, dtype),
            frames,
            {key: value for key, value in transformer_options.items() if key == "optimized_attention_override"},
        )
        return self.control_merge(added, previous, output_dtype=None)

    def _fused(
        self, width: int, height: int, window: list[int] | None, sigma: Tensor, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """f_c of the frames of this call `[F, C, h, w]`."""
        place = (width, height, device, dtype)
        content, motion, region = self._cache.get(place, lambda: self._embedded(width, height, device, dtype))
        if window is not None:
            index = self._cache.get(("window", tuple(window), device), lambda: torch.tensor(window, device=device))
            content, motion = content[index], motion[index]
            region = region if region.shape[0] == 1 else region[index]
        safm = self.control_model.safm
        if self.fusion == DIRECT_SUM:
            return safm(content, motion, region, sigma, DIRECT_SUM)
        # H takes c_noise whatever the base's timesteps are.
        c_noise = 0.25 * sigma.float().clamp(min=1e-6).log()
        return safm.fuse(content, motion, safm.gamma(region, torch.zeros_like(c_noise) if self.fusion == NO_TIME else c_noise))

    def _embedded(self, width: int, height: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """E_c and E_m of the whole clip `[F, C, h, w]`, and the edit region `[F, 1, H, W]`; one frame of it if it stands still."""
        hints = self.source.hints(width, height)

        def embed(encoder: torch.nn.Module, pictures: Tensor) -> Tensor:
            return torch.cat([encoder(part.to(device, dtype)) for part in pictures.split(FRAMES_AT_ONCE)])

        content = embed(self.control_model.content_encoder, hints.content)
        motion = embed(self.control_model.motion_encoder, hints.motion)
        region = hints.edit_region[:1] if hints.region_stands_still else hints.edit_region
        return content, motion, region.to(device, dtype)


def _window(transformer_options: dict, frames: int, source_frames: int) -> list[int] | None:
    """Numbers of the frames of this call, or None for the whole clip. Raises ValueError when the request has another length."""
    window = transformer_options.get("context_window")
    total = frames if window is None else window.total_frames
    if total != source_frames:
        raise ValueError(
            f"the LATENT has {total} frames, source_frames of SAFM Trajectory Fuse {source_frames}: "
            "make the LATENT as long as the clip, or cut the clip and its tracks"
        )
    if window is None:
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    return ([] if anchor is None or anchor < 0 else [anchor]) + list(window.index_list)


def check_base(unet: torch.nn.Module, control: ReVideoControlModel) -> None:
    """Raise ValueError, with numbers, when `control` was not made for a base with this UNet."""
    advice = "load the base that the control file was trained on (ReVideo: its own checkpoint, or Stable Video Diffusion)"
    if not isinstance(unet, UNetModel):
        raise ValueError(f"this control branch fits UNets, this MODEL is a {type(unet).__name__}: {advice}")
    trunk = control.trunk
    base_first, first = unet.input_blocks[0][0], trunk.input_blocks[0][0]
    if (base_first.in_channels, base_first.out_channels) != (first.in_channels, first.out_channels):
        raise ValueError(
            f"the control branch takes {first.in_channels} channels to {first.out_channels}, this MODEL {base_first.in_channels} "
            f"to {base_first.out_channels}: {advice}"
        )
    wanted, found = _layout(trunk), _layout(unet)
    if wanted != found:
        other = sorted(key for key in {**wanted, **found} if wanted.get(key) != found.get(key))
        raise ValueError(
            f"the control branch was made for another base: {len(other)} layers of its trunk differ from this MODEL, such as "
            f"{other[0]}: {advice}"
        )


def _layout(unet: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of encoder and middle."""
    parts = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    return {key: tuple(value.shape) for key, value in unet.state_dict().items() if key.startswith(parts)}
