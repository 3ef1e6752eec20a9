"""ReVideo: load its checkpoint, put the edited first frame, and the region with its motion, on CONDITIONING."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..magdiff_core.host.control_apply import apply_control, make_request
from ..magdiff_core.host.control_base import load_control_onto
from ..magdiff_core.host.control_file import load_revideo
from ..magdiff_core.host.folders import checkpoint_names, find_checkpoint, new_file
from ..magdiff_core.host.progress import frame_counter
from ..magdiff_core.host.revideo_conditioning import image_conditioning
from ..magdiff_core.host.revideo_split import split_checkpoint
from ..magdiff_core.images import clean_images, fit_mask
from .common_inputs import (
    Control,
    clip_numbers,
    control_settings,
    edit_region,
    first_frame,
    revideo_control,
    revideo_encoders,
    revideo_size,
)

WHAT_TO_LOAD = {
    "model": "use Image Only Checkpoint Loader with Stable Video Diffusion, and Load ReVideo Control behind it",
    "clip_vision": "use Image Only Checkpoint Loader with Stable Video Diffusion",
    "vae": "use Image Only Checkpoint Loader with Stable Video Diffusion",
}


class LoadReVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffLoadReVideo",
            display_name="Load ReVideo",
            category="MagDiff/loaders",
            description="Loads the published ReVideo checkpoint as it is: its fine-tuned Stable Video Diffusion and the control "
            "branch. The file is recognised by its contents, not by its name.",
            search_aliases=["revideo", "checkpoint loader", "svd", "stable video diffusion", "control", "magdiff"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="A file of models/magdiff or models/checkpoints: ReVideo's model.ckpt, or its control branch alone.",
                )
            ],
            outputs=[
                io.Model.Output("model", tooltip="ReVideo's own Stable Video Diffusion."),
                io.ClipVision.Output("clip_vision", tooltip="The image encoder."),
                io.Vae.Output("vae", tooltip="The autoencoder with the temporal decoder."),
                Control.Output("control", tooltip="The control branch, for SAFM Trajectory Fuse."),
            ],
        )

    @classmethod
    def execute(cls, checkpoint) -> io.NodeOutput:
        loaded, control = load_revideo(find_checkpoint(checkpoint))
        parts = []
        for name, advice in WHAT_TO_LOAD.items():
            part = getattr(loaded, name)
            parts.append(ExecutionBlocker(f"{checkpoint} holds no {name}: {advice}") if part is None else part)
        return io.NodeOutput(*parts, control)


class LoadReVideoControl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffLoadReVideoControl",
            display_name="Load ReVideo Control",
            category="MagDiff/loaders",
            description="Puts a control file (Split ReVideo Checkpoint) onto a stock Stable Video Diffusion: its changes to the "
            "base, and its control branch. Another base than the one it was made for is refused.",
            search_aliases=["revideo", "control loader", "svd", "stable video diffusion", "magdiff"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Video Diffusion for 14 frames, from Image Only Checkpoint Loader."),
                io.Combo.Input(
                    "control_file",
                    options=checkpoint_names(),
                    tooltip="A file of models/magdiff or models/checkpoints that Split ReVideo Checkpoint wrote.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with ReVideo's changes."),
                Control.Output("control", tooltip="The control branch, for SAFM Trajectory Fuse."),
            ],
        )

    @classmethod
    def execute(cls, model, control_file) -> io.NodeOutput:
        return io.NodeOutput(*load_control_onto(model, find_checkpoint(control_file)))


class SplitReVideoCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffSplitReVideoCheckpoint",
            display_name="Split ReVideo Checkpoint",
            category="MagDiff/loaders",
            description="Writes a control file from ReVideo's checkpoint, once: the control branch, and what differs from a stock "
            "Stable Video Diffusion. About a quarter of the size, and no pickle.",
            search_aliases=["revideo", "convert", "safetensors", "extract", "magdiff"],
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoint_names(), tooltip="ReVideo's model.ckpt, whole."),
                io.Combo.Input(
                    "base", options=checkpoint_names(), tooltip="Stock Stable Video Diffusion for 14 frames: the base of ReVideo."
                ),
                io.String.Input(
                    "file_name", default="revideo-control.safetensors", tooltip="Name of the control file in models/magdiff."
                ),
            ],
            outputs=[io.String.Output("text", tooltip="What was written, and how much of the base differs.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, checkpoint, base, file_name) -> io.NodeOutput:
        target = new_file(file_name, "revideo-control.safetensors")
        text = str(split_checkpoint(find_checkpoint(checkpoint), find_checkpoint(base), target, frame_counter))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class ReVideoImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffReVideoImageConditioning",
            display_name="ReVideo Image Conditioning",
            category="MagDiff/conditioning",
            description="Gives the edited first frame to Stable Video Diffusion in the way ReVideo was made for: the whole frame "
            "to the image encoder, its own noise and frame rate. Sample with euler, karras, Video Linear CFG Guidance min_cfg 1 "
            "and cfg 4.",
            search_aliases=["svd", "img2vid", "image to video", "first frame", "revideo", "magdiff"],
            inputs=[
                *revideo_encoders(),
                first_frame(),
                *revideo_size(),
                io.Int.Input(
                    "frames", default=14, min=1, max=4096, tooltip="Length of the clip: that of source_frames. ReVideo makes 14."
                ),
                *clip_numbers(),
                io.Int.Input(
                    "seed", default=23, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Seed of that noise.", advanced=True
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The frame and its numbers."),
                io.Conditioning.Output("negative", tooltip="The numbers alone."),
                io.Latent.Output("latent", tooltip="An empty latent of the clip."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_vision,
        vae,
        edited_frame: torch.Tensor,
        resolution: str,
        width: int,
        height: int,
        frames: int,
        fps: int,
        motion_bucket_id: int,
        augmentation_level: float,
        seed: int,
    ) -> io.NodeOutput:
        edited_frame = clean_images(edited_frame, "edited_frame")
        positive, negative, empty = image_conditioning(
            clip_vision,
            vae,
            edited_frame,
            resolution,
            width,
            height,
            frames,
            fps,
            motion_bucket_id,
            augmentation_level,
            seed,
        )
        return io.NodeOutput(positive, negative, {"samples": empty})


class SAFMTrajectoryFuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffSAFMTrajectoryFuse",
            display_name="SAFM Trajectory Fuse",
            category="MagDiff/conditioning",
            description="Edits a region of a clip: outside of edit_mask the source stays, inside things move along the tracks. "
            "Content and motion are weighed by place and time (SAFM).",
            search_aliases=["revideo", "controlnet", "trajectory", "drag", "motion control", "safm", "video edit", "magdiff"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From ReVideo Image Conditioning, perhaps with ControlNets."),
                io.Conditioning.Input("negative", tooltip="From ReVideo Image Conditioning. It gets the same control."),
                revideo_control(),
                io.Image.Input("source_frames", tooltip="The clip before the edit, as many frames as the latent."),
                edit_region(),
                io.Tracks.Input("tracks", tooltip="Where points move, in pixels of source_frames."),
                *control_settings(),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="With the control, for any sampler."),
                io.Conditioning.Output("negative", tooltip="With the same control."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        control,
        source_frames: torch.Tensor,
        edit_mask: torch.Tensor,
        tracks: dict,
        strength: float,
        start_percent: float,
        end_percent: float,
        fusion: str,
        motion_maps: str,
    ) -> io.NodeOutput:
        source_frames = clean_images(source_frames, "source_frames")
        frames, height, width = source_frames.shape[:3]
        region = fit_mask(edit_mask, "edit_mask", frames, height, width)
        request = make_request(control, source_frames, region, tracks, motion_maps)
        return io.NodeOutput(
            *apply_control(positive, negative, control, request, strength, start_percent, end_percent, fusion)
        )


NODES = [LoadReVideo, LoadReVideoControl, SplitReVideoCheckpoint, ReVideoImageConditioning, SAFMTrajectoryFuse]
