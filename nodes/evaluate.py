"""Evaluate Clips: the metrics of the papers, with the user's own model files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..magdiff_core.host.metric_models import CLIP_FOLDERS, file_names, load_models, put_away
from ..magdiff_core.host.progress import frame_counter
from ..magdiff_core.metrics.evaluation import Evaluator
from ..magdiff_core.metrics.inputs import MeasuredClip
from ..magdiff_core.metrics.plot import draw_plot
from ..magdiff_core.metrics.report import as_json, as_text


class EvaluateClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffEvaluateClips",
            display_name="Evaluate Clips",
            category="MagDiff/evaluate",
            description="Measures clips as the papers of MagDiff and ReVideo do: PSNR outside the edit region, textual alignment, "
            "consistency of frames, DINO score, FVD, video Inception Score. What is wired and chosen is measured. A list of "
            "clips is measured together, with one entry of each other list for each clip, or one for all.",
            search_aliases=["metrics", "benchmark", "psnr", "clip score", "fvd", "dino", "inception score", "consistency"],
            inputs=[
                io.Image.Input("frames", tooltip="The clip to measure, or a list of clips."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the clip is said to show, for the textual alignment; empty to leave it out. Needs clip_model.",
                ),
                io.Combo.Input(
                    "clip_model",
                    options=file_names(CLIP_FOLDERS),
                    tooltip="A whole CLIP file, with picture half, text half and both projections, for textual alignment and frame "
                    "consistency. In models/metrics, models/clip_vision or models/text_encoders.",
                ),
                io.Combo.Input(
                    "dino_model",
                    options=file_names(),
                    tooltip="DINO ViT-S/16 for the DINO score, in models/metrics. Needs subject.",
                ),
                io.Combo.Input(
                    "i3d_model",
                    options=file_names(),
                    tooltip="I3D for FVD, in models/metrics. Needs real_clips, and a list of clips.",
                ),
                io.Combo.Input(
                    "c3d_model",
                    options=file_names(),
                    tooltip="C3D, trained on UCF-101, for the video Inception Score, in models/metrics.",
                ),
                io.Boolean.Input(
                    "allow_torchscript",
                    default=False,
                    tooltip="Lets i3d_model and c3d_model be TorchScript. Such a file runs code of its own: say yes only to files "
                    "whose source you trust.",
                    advanced=True,
                ),
                io.Image.Input(
                    "source_frames",
                    optional=True,
                    tooltip="The frames before the edit, for the PSNR; one picture serves all frames.",
                ),
                io.Mask.Input(
                    "edit_mask",
                    optional=True,
                    tooltip="1 = may change: PSNR is measured outside. Wire this or keep_mask, not both.",
                ),
                io.Mask.Input(
                    "keep_mask", optional=True, tooltip="1 = kept: PSNR is measured inside. Wire this or edit_mask, not both."
                ),
                io.Image.Input(
                    "subject",
                    optional=True,
                    tooltip="Pictures of the subject that was given, for the DINO score; on black is best.",
                ),
                io.Mask.Input(
                    "subject_mask",
                    optional=True,
                    tooltip="1 = the subject in frames; without it the DINO score compares whole frames with the subject.",
                ),
                io.Image.Input("real_clips", optional=True, tooltip="List of real clips for FVD, as long as those in frames."),
            ],
            outputs=[
                io.String.Output("text", tooltip="The results as a table, with the model files and warnings."),
                io.Image.Output("plot", tooltip="The values of each frame, a panel for each metric."),
                io.String.Output("json", tooltip="All numbers as JSON, down to each frame."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        frames: list,
        prompt: list[str],
        clip_model: list[str],
        dino_model: list[str],
        i3d_model: list[str],
        c3d_model: list[str],
        allow_torchscript: list[bool],
        source_frames: list | None = None,
        edit_mask: list | None = None,
        keep_mask: list | None = None,
        subject: list | None = None,
        subject_mask: list | None = None,
        real_clips: list | None = None,
    ) -> io.NodeOutput:
        each = {
            "prompt": prompt,
            "source_frames": source_frames,
            "edit_mask": edit_mask,
            "keep_mask": keep_mask,
            "subject": subject,
            "subject_mask": subject_mask,
        }
        clips = [
            MeasuredClip(clip, **{name: _entry(values, index, len(frames), name) for name, values in each.items()})
            for index, clip in enumerate(frames)
        ]
        models = load_models(clip_model[0], dino_model[0], i3d_model[0], c3d_model[0], allow_torchscript[0])
        real_clips = real_clips or []
        networks = sum(model is not None for model in (models.clip, models.dino, models.i3d, models.c3d))
        steps = networks * sum(len(clip) for clip in frames) + sum(len(clip) for clip in real_clips)
        each_frame = frame_counter(steps)
        evaluator = Evaluator(models, lambda count: [each_frame() for _ in range(count)])
        try:
            for clip in clips:
                evaluator.add(clip)
            for clip in real_clips:
                evaluator.add_real(clip)
            result = evaluator.finish()
        finally:
            put_away(models)
        text, plot = as_text(result), draw_plot(result)
        shown = ui.PreviewImage(plot, cls=cls).as_dict()
        return io.NodeOutput(text, plot, as_json(result), ui={**shown, "text": [text]})


def _entry(values: Sequence[Any] | None, index: int, clips: int, name: str) -> Any:
    """What belongs to a clip: one entry serves all clips."""
    if not values:
        return "" if name == "prompt" else None
    if len(values) not in (1, clips):
        raise ValueError(f"{name} is a list of {len(values)}, frames of {clips} clips: give one for each clip, or one for all")
    return values[index if len(values) > 1 else 0]


NODES = [EvaluateClips]
