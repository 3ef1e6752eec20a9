"""Subject Segment: cut the subject out of a picture or a clip."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magdiff_core.alignment.sda import subject_on_black
from ..magdiff_core.host.progress import frame_counter
from ..magdiff_core.host.sam_loader import load_sam, sam_files
from ..magdiff_core.images import clean_images, fit_mask
from ..magdiff_core.segment.boxes import boxes_of_masks
from ..magdiff_core.segment.preview import preview_frames
from ..magdiff_core.segment.prompts import parse_boxes, parse_frame_numbers, parse_points
from ..magdiff_core.segment.subject import GRABCUT, Method, Request, segment_subject
from .preview import show_frames

METHOD_GRABCUT, METHOD_SAM = "GrabCut", "SAM"
POINTS = 'JSON like [{"x": 120, "y": 80}] in pixels of the first frame, as core\'s SAM3 nodes take it.'


class SubjectSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = sam_files()
        pixels = {"default": 0, "min": 0, "max": 16384}
        return io.Schema(
            node_id="MagDiffSubjectSegment",
            display_name="Subject Segment",
            category="MagDiff/subject",
            description="Cuts the subject out of a picture or a clip and puts it on black. Say where it is with a "
            "box, points or a mask of another node; in a clip the mask follows the subject, and the preview shows "
            "where it may be lost.",
            search_aliases=["mask", "segment", "cutout", "remove background", "grabcut", "sam", "rotoscope", "track"],
            inputs=[
                io.Image.Input("images", tooltip="A picture, or the frames of a clip."),
                io.Combo.Input(
                    "method",
                    options=[METHOD_GRABCUT, METHOD_SAM],
                    default=METHOD_GRABCUT,
                    tooltip="GrabCut needs no model file. SAM (Segment Anything) is better at fine shapes and needs a "
                    "file in models/sams. Neither is used when subject_mask is wired.",
                ),
                io.Combo.Input(
                    "sam_model",
                    options=files,
                    default=files[min(1, len(files) - 1)],
                    tooltip="File of models/sams for method SAM: sam_vit_b, sam_vit_l or sam_vit_h.",
                ),
                io.Int.Input(
                    "box_x",
                    tooltip="Left side of the box around the subject, in pixels of the first frame.",
                    **pixels,
                ),
                io.Int.Input("box_y", tooltip="Top of the box around the subject, in pixels.", **pixels),
                io.Int.Input(
                    "box_width",
                    tooltip="Width of the box in pixels. 0 = no box: without points and mask GrabCut then looks for "
                    "the subject in the middle 80 % of the picture.",
                    **pixels,
                ),
                io.Int.Input("box_height", tooltip="Height of the box in pixels. 0 = no box.", **pixels),
                io.String.Input("positive_points", default="", multiline=False, tooltip=f"Points on the subject. {POINTS}"),
                io.String.Input("negative_points", default="", multiline=False, tooltip=f"Points on the background. {POINTS}"),
                io.Boolean.Input(
                    "track",
                    default=True,
                    tooltip="In a clip, follow the first frame's mask through all frames. Off: it serves all frames as it is.",
                ),
                io.Int.Input(
                    "grow", default=0, min=-64, max=64, tooltip="Widens the mask by this many pixels; negative shrinks it."
                ),
                io.Int.Input(
                    "feather", default=0, min=0, max=64, tooltip="Softens the mask's edge over this many pixels to each side."
                ),
                io.Boolean.Input("fill_holes", default=False, tooltip="Fills everything that the subject encloses."),
                io.Boolean.Input(
                    "whole_frame_if_none",
                    default=False,
                    tooltip="When no subject is found, or it covers over 95 %, take the whole picture as the subject "
                    "(the MagDiff paper's rule) instead of stopping with an error.",
                    advanced=True,
                ),
                io.String.Input(
                    "correction_frames",
                    default="",
                    multiline=False,
                    tooltip='Frames that correction_masks belong to, counted from 0, like "12, 30".',
                    advanced=True,
                ),
                io.BoundingBox.Input(
                    "box",
                    optional=True,
                    force_input=True,
                    tooltip="Box from another node (a detector, Create Bounding Boxes): one, or one per frame. "
                    "Replaces the four numbers.",
                ),
                io.Mask.Input(
                    "subject_mask",
                    optional=True,
                    tooltip="Mask of any other node (SAM3, SAM2, a painted one), 1 = subject. One for every frame is "
                    "used as it is; a single one is followed through the clip.",
                ),
                io.Mask.Input(
                    "correction_masks",
                    optional=True,
                    tooltip="Corrected masks for later frames, one for each number in correction_frames. From there "
                    "on they take over.",
                ),
            ],
            outputs=[
                io.Image.Output("subject", tooltip="The subject on black, for Encode Subject Tokens and HFA Pyramid Encode."),
                io.Mask.Output("subject_mask", tooltip="1 = subject, one mask per frame."),
                io.Mask.Output("edit_mask", tooltip="1 = everything but the subject: what an edit may change."),
                io.BoundingBox.Output(
                    "bounding_boxes", tooltip="Smallest box around the subject; for a clip a list with one entry per frame."
                ),
                io.Image.Output("preview", tooltip="The subject in colour, the rest dark; in a clip bars show the confidence."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        method: str,
        sam_model: str,
        box_x: int,
        box_y: int,
        box_width: int,
        box_height: int,
        positive_points: str,
        negative_points: str,
        track: bool,
        grow: int,
        feather: int,
        fill_holes: bool,
        whole_frame_if_none: bool,
        correction_frames: str,
        box: object = None,
        subject_mask: torch.Tensor | None = None,
        correction_masks: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        device = images.device
        images = clean_images(images, "images")
        frames, height, width = images.shape[:3]
        if box is None and (box_width or box_height):
            box = {"x": box_x, "y": box_y, "width": box_width, "height": box_height}
        request = Request(
            positive=parse_points(positive_points, "positive_points", width, height),
            negative=parse_points(negative_points, "negative_points", width, height),
            boxes=parse_boxes(box, "box", frames, width, height),
            subject_mask=None if subject_mask is None else fit_mask(subject_mask, "subject_mask", frames, height, width),
            corrections=_corrections(correction_masks, correction_frames, frames, height, width),
            track=track,
        )
        each_frame = frame_counter(2 * frames)
        found, followed = segment_subject(
            images,
            request,
            _method(method, sam_model, subject_mask is not None),
            grow=grow,
            feather=feather,
            fill=fill_holes,
            whole_frame_if_none=whole_frame_if_none,
            each_frame=each_frame,
        )
        masks = found.subject_mask
        preview = preview_frames(images, masks, found.confidence if followed else None, found.given, each_frame)
        return io.NodeOutput(
            subject_on_black(images, masks).to(device),
            masks.to(device),
            (1 - masks).to(device),
            boxes_of_masks(masks),
            preview.to(device),
            ui=show_frames(preview, "MagDiff_subject", cls),
        )


def _corrections(masks: torch.Tensor | None, numbers: str, frames: int, height: int, width: int) -> dict[int, torch.Tensor]:
    if masks is None:
        if numbers.strip():
            raise ValueError(f'correction_frames is "{numbers}", but nothing is wired to correction_masks.')
        return {}
    if masks.ndim == 2:
        masks = masks.unsqueeze(0)
    chosen = parse_frame_numbers(numbers, "correction_frames", masks.shape[0], frames)
    fitted = fit_mask(masks, "correction_masks", masks.shape[0], height, width)
    return dict(zip(chosen, fitted, strict=True))


def _method(name: str, sam_model: str, mask_is_wired: bool) -> Method:
    if name == METHOD_GRABCUT or mask_is_wired:
        return GRABCUT
    segmenter = load_sam(sam_model)
    return Method(METHOD_SAM, segmenter.segment, segmenter.refine)


NODES = [SubjectSegment]
