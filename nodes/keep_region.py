"""Keep Region: what an edit had to leave alone is put back pixel for pixel."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magdiff_core.segment.paste import paste_kept_region


class KeepRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffKeepRegion",
            display_name="Keep Region",
            category="MagDiff/sampling",
            description="Pastes the kept region of the source frames back into the edited frames, pixel for pixel and "
            "with a soft seam on the edit side, and measures how well the edit had kept it by itself.",
            search_aliases=["paste back", "composite", "keep background", "psnr", "uncrop", "blend"],
            inputs=[
                io.Image.Input("edited_frames", tooltip="Frames after the edit, from VAE Decode."),
                io.Image.Input("source_frames", tooltip="Frames before the edit; a single picture serves all frames."),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=128,
                    tooltip="Width of the seam in pixels. It lies outside the kept region, which stays exact.",
                ),
                io.Mask.Input(
                    "keep_mask",
                    optional=True,
                    tooltip="1 = kept (Subject Segment's subject_mask). Wire this or edit_mask, not both.",
                ),
                io.Mask.Input(
                    "edit_mask",
                    optional=True,
                    tooltip="1 = may change (Subject Segment's edit_mask). Wire this or keep_mask, not both.",
                ),
            ],
            outputs=[
                io.Image.Output("frames", tooltip="The edited frames with the kept region of the source."),
                io.Float.Output(
                    "psnr",
                    tooltip="PSNR in dB of the kept region before pasting: how well the edit left it alone. Equal pixels give 100.",
                ),
                io.String.Output("text", tooltip="The same in words, with the worst frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        edited_frames: torch.Tensor,
        source_frames: torch.Tensor,
        feather: int,
        keep_mask: torch.Tensor | None = None,
        edit_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        frames, psnr, text = paste_kept_region(edited_frames, source_frames, keep_mask, edit_mask, feather)
        return io.NodeOutput(frames.to(edited_frames.device), psnr, text)


NODES = [KeepRegion]
