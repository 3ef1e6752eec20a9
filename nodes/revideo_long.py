"""ReVideo Long Video: an edit of any length, window by window."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magdiff_core.host.revideo_windows import Models, Settings, check_clip, clip_size, edit_long_clip
from ..magdiff_core.images import clean_images, fit_mask
from ..magdiff_core.motion.colour_match import COLOUR_MATCHES
from ..magdiff_core.motion.windows import OVERLAP_MODES, plan_windows
from .common_inputs import (
    clip_numbers,
    control_settings,
    edit_region,
    first_frame,
    revideo_control,
    revideo_encoders,
    revideo_size,
)

SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m")
SCHEDULERS = ("karras", "exponential", "simple")
"""A choice of core's: all of core's would change with its version, but saved workflows must not."""


class ReVideoLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        guidance = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return io.Schema(
            node_id="MagDiffReVideoLongVideo",
            display_name="ReVideo Long Video",
            category="MagDiff/sampling",
            description="Edits a clip of any length with ReVideo, window by window: the last frame of a window is the edited first "
            "frame of the next. After an interrupt, queue again: it goes on behind the last finished window.",
            search_aliases=["sliding window", "long video", "revideo", "video edit", "resume", "svd", "context", "magdiff"],
            inputs=[
                io.Model.Input("model", tooltip="The model of Load ReVideo. Linear guidance is built in, see cfg."),
                *revideo_encoders(),
                revideo_control(),
                first_frame(),
                io.Image.Input("source_frames", tooltip="The whole clip before the edit, of any length from one window on."),
                edit_region(),
                io.Tracks.Input("tracks", tooltip="Where points move, over the whole clip, in pixels of source_frames."),
                *revideo_size(),
                io.Int.Input(
                    "window_frames",
                    default=14,
                    min=2,
                    max=4096,
                    tooltip="Frames of a window. ReVideo was trained on 14; fewer are refused.",
                    advanced=True,
                ),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=4095,
                    tooltip="Frames that two windows share. 1: as in the paper. More: smoother, but more windows.",
                ),
                io.Combo.Input(
                    "overlap_mode",
                    options=list(OVERLAP_MODES),
                    default=OVERLAP_MODES[0],
                    tooltip="Where windows share several frames. hold: the next one starts with them as they are, and motion goes "
                    "on. cross-fade: it makes them again, and one goes over into the other.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "colour_match",
                    options=list(COLOUR_MATCHES),
                    default=COLOUR_MATCHES[0],
                    tooltip="Against drift. source: brightness and contrast of each frame follow the source, measured outside of "
                    "edit_mask, before the frame starts the next window.",
                ),
                io.Int.Input(
                    "seed",
                    default=23,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # A seed that changes at each queueing would make another clip instead of going on.
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the noise of the first window; the next ones count on from it.",
                ),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="Denoising steps of each window; 15 to 25."),
                io.Float.Input(
                    "cfg", default=4.0, tooltip="Guidance in the last frame of a window; it grows from min_cfg on.", **guidance
                ),
                io.Float.Input(
                    "min_cfg", default=1.0, tooltip="Guidance in the first frame of a window.", advanced=True, **guidance
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(SAMPLERS),
                    default=SAMPLERS[0],
                    tooltip="Sampler. ReVideo was made for euler.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(SCHEDULERS),
                    default=SCHEDULERS[0],
                    tooltip="Noise schedule. ReVideo was made for karras.",
                    advanced=True,
                ),
                *control_settings(),
                *clip_numbers(),
            ],
            outputs=[
                io.Image.Output("frames", tooltip="The whole edited clip, for Keep Region."),
                io.Image.Output("references", tooltip="The frame in which each window started, one a window: shows drift."),
                io.String.Output("text", tooltip="The windows, and how well each kept what lies outside of the region."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip_vision,
        vae,
        control,
        edited_frame: torch.Tensor,
        source_frames: torch.Tensor,
        edit_mask: torch.Tensor,
        tracks: dict,
        resolution: str,
        width: int,
        height: int,
        window_frames: int,
        overlap: int,
        overlap_mode: str,
        colour_match: str,
        seed: int,
        steps: int,
        cfg: float,
        min_cfg: float,
        sampler_name: str,
        scheduler: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        fusion: str,
        motion_maps: str,
        fps: int,
        motion_bucket_id: int,
        augmentation_level: float,
    ) -> io.NodeOutput:
        edited_frame = clean_images(edited_frame, "edited_frame")[:1]
        source_frames = clean_images(source_frames, "source_frames")
        edit_mask = fit_mask(edit_mask, "edit_mask", *source_frames.shape[:3])
        models = Models(model, clip_vision, vae, control)
        request = check_clip(models, source_frames, edit_mask, tracks, motion_maps, window_frames)
        size = clip_size(request, edited_frame, resolution, width, height)
        settings = Settings(
            overlap_mode=overlap_mode,
            colour_match=colour_match,
            seed=seed,
            steps=steps,
            cfg=cfg,
            min_cfg=min_cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            strength=strength,
            start_percent=start_percent,
            end_percent=end_percent,
            fusion=fusion,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            augmentation_level=augmentation_level,
        )
        windows = plan_windows(source_frames.shape[0], window_frames, overlap)
        clip = edit_long_clip(models, edited_frame, request, size, windows, settings)
        return io.NodeOutput(clip.frames, clip.references, clip.text)


NODES = [ReVideoLongVideo]
