"""Inputs that several nodes have with the same meaning, so that limits and tooltips are written once.

An input that means something else in each node, such as `positive`, stays with its node.
"""

from __future__ import annotations

from comfy_api.latest import io

from ..magdiff_core.alignment.apa import ALPHA_MAX
from ..magdiff_core.motion.hints import MAP_MODES
from ..magdiff_core.motion.resolution import BUDGETS, CUSTOM
from ..magdiff_core.motion.safm import FUSION_MODES

Control = io.Custom("MAGDIFF_CONTROL")

ALPHA = {"min": 0.0, "max": ALPHA_MAX, "step": 0.01, "display_mode": io.NumberDisplay.slider}
"""Limits of a slider of APA."""
PERCENT = {"min": 0.0, "max": 1.0, "step": 0.001, "advanced": True}
"""Limits of a part of sampling."""


def revideo_encoders() -> list[io.Input]:
    """Inputs clip_vision and vae."""
    return [
        io.ClipVision.Input("clip_vision", tooltip="The image encoder of Load ReVideo."),
        io.Vae.Input("vae", tooltip="The autoencoder of Load ReVideo."),
    ]


def first_frame() -> io.Input:
    """Input edited_frame."""
    return io.Image.Input(
        "edited_frame", tooltip="First frame of the clip as it is to look, whole: with the edit in it and the rest unchanged."
    )


def revideo_control() -> io.Input:
    """Input control."""
    return Control.Input("control", tooltip="The control branch of Load ReVideo.")


def edit_region() -> io.Input:
    """Input edit_mask."""
    return io.Mask.Input("edit_mask", tooltip="1 = may change. One for all frames, or one a frame; cut at one half.")


def revideo_size() -> list[io.Input]:
    """Inputs resolution, width and height."""
    side = {"min": 64, "max": 8192, "step": 64, "advanced": True}
    return [
        io.Combo.Input(
            "resolution",
            options=[*BUDGETS, CUSTOM],
            default=next(iter(BUDGETS)),
            tooltip="Pixels of a frame; the sides keep the frame's shape in multiples of 64. 1 MP needs about 20 GB, take "
            "less on a small GPU. custom: width and height below.",
        ),
        io.Int.Input("width", default=1024, tooltip="Width in pixels for resolution custom.", **side),
        io.Int.Input("height", default=576, tooltip="Height in pixels for resolution custom.", **side),
    ]


def control_settings() -> list[io.Input]:
    """Inputs strength, start_percent, end_percent, fusion and motion_maps."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.01,
            tooltip="Of the whole control. 0 = the plain model, exactly.",
        ),
        io.Float.Input("start_percent", default=0.0, tooltip="Part of sampling at which it starts to act.", **PERCENT),
        io.Float.Input("end_percent", default=1.0, tooltip="Part of sampling at which it stops to act.", **PERCENT),
        io.Combo.Input(
            "fusion",
            options=list(FUSION_MODES),
            default=FUSION_MODES[0],
            tooltip="safm: as trained. direct sum, no time: the two that the paper compares it with.",
            advanced=True,
        ),
        io.Combo.Input(
            "motion_maps",
            options=list(MAP_MODES),
            default=MAP_MODES[0],
            tooltip="default: with fractions of pixels, nothing outside of the picture. reference: as released.",
            advanced=True,
        ),
    ]


def clip_numbers() -> list[io.Input]:
    """Inputs fps, motion_bucket_id and augmentation_level."""
    return [
        io.Int.Input("fps", default=10, min=1, max=1024, tooltip="Frames a second that the model is told, as given."),
        io.Int.Input("motion_bucket_id", default=127, min=1, max=1023, tooltip="How much motion the model is told.", advanced=True),
        io.Float.Input(
            "augmentation_level",
            default=0.02,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Noise on the first frame (of each window), for pixels from -1 to 1. Core's SVD node makes twice as much.",
            advanced=True,
        ),
    ]
