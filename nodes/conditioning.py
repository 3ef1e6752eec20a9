"""Nodes that put the subject on CONDITIONING: Encode Subject Tokens, APA Conditioning, HFA Pyramid Encode."""

from __future__ import annotations

from comfy_api.latest import io

from ..magdiff_core.alignment.apa import ADAPTIVE, FIXED, AlphaSettings
from ..magdiff_core.alignment.hfa import FIT_MODES
from ..magdiff_core.host.conds import EDIT, GENERATE, attach
from ..magdiff_core.host.encode import encode_subject_pyramid, encode_subject_tokens, subject_tokens
from .common_inputs import ALPHA, PERCENT

CATEGORY = "MagDiff/conditioning"


class EncodeSubjectTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffEncodeSubjectTokens",
            display_name="Encode Subject Tokens",
            category=CATEGORY,
            description="Reads the subject with the image encoder, in the way the adapter on this MODEL was trained. "
            "Adds one entry for the black frames of a generated clip.",
            search_aliases=["ipadapter", "clip vision", "subject", "reference", "image prompt", "magdiff"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL with a MagDiff adapter; it tells hidden layer, crop and channel order."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder that the adapter was trained with."),
                io.Image.Input(
                    "subject", tooltip="Subject on black from Subject Segment: one picture to generate, all frames to edit."
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    "clip_vision_output", tooltip="One entry a subject frame and, last, one for the black frame."
                )
            ],
        )

    @classmethod
    def execute(cls, model, clip_vision, subject) -> io.NodeOutput:
        return io.NodeOutput(encode_subject_tokens(model, clip_vision, subject))


class APAConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffAPAConditioning",
            display_name="APA Conditioning",
            category=CATEGORY,
            description="Adaptive Prompts Alignment: weighs text against picture inside cross-attention. "
            "Moving a slider encodes nothing again.",
            search_aliases=["ipadapter", "alpha", "weight", "subject strength", "text strength", "prompt strength", "magdiff"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. It gets the same picture, only its text differs."),
                io.ClipVisionOutput.Input("clip_vision_output", tooltip="The subject from Encode Subject Tokens."),
                io.Float.Input("alpha_text", default=1.0, tooltip="Strength of the text. 1 = as learned, 0 = none.", **ALPHA),
                io.Float.Input("alpha_image", default=1.0, tooltip="Strength of the picture. 1 = as learned, 0 = none.", **ALPHA),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    tooltip="Part of sampling at which the sliders start to act. Before it the learned weights act alone.",
                    **PERCENT,
                ),
                io.Float.Input("end_percent", default=1.0, tooltip="Part of sampling at which the sliders stop to act.", **PERCENT),
                io.Combo.Input(
                    "mode",
                    options=[ADAPTIVE, FIXED],
                    default=ADAPTIVE,
                    tooltip="adaptive: the learned weights of every layer, times the sliders. fixed: the sliders alone.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt with the subject."),
                io.Conditioning.Output("negative", tooltip="The negative prompt with the subject."),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, clip_vision_output, alpha_text, alpha_image, start_percent, end_percent, mode
    ) -> io.NodeOutput:
        alphas = AlphaSettings(alpha_text, alpha_image, start_percent, end_percent, mode)
        tokens = subject_tokens(clip_vision_output)
        entries = {"tokens": tokens, "alphas": alphas}
        return io.NodeOutput(attach(positive, **entries), attach(negative, negative=True, **entries))


class HFAPyramidEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": 16, "max": 8192, "step": 8}
        return io.Schema(
            node_id="MagDiffHFAPyramidEncode",
            display_name="HFA Pyramid Encode",
            category=CATEGORY,
            description="High-Fidelity Alignment: feeds the subject at three sizes into the first layer, so that its details "
            "survive. The subject keeps its place in the picture.",
            search_aliases=["reference latent", "image to video", "subject", "detail", "video to video", "magdiff"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. It gets the same subject."),
                io.Vae.Input("vae", tooltip="The VAE of this model."),
                io.Image.Input("subject", tooltip="Subject on black from Subject Segment."),
                io.Combo.Input(
                    "mode",
                    options=[GENERATE, EDIT],
                    default=GENERATE,
                    tooltip="generate: one picture starts a new clip. edit: every frame of a clip keeps what is not black.",
                ),
                io.Int.Input("width", default=256, tooltip="Width of the new clip in pixels (mode generate).", **side),
                io.Int.Input("height", default=256, tooltip="Height of the new clip in pixels (mode generate).", **side),
                io.Int.Input("frames", default=8, min=1, max=1024, tooltip="Length of the new clip (mode generate)."),
                io.Combo.Input(
                    "fit",
                    options=list(FIT_MODES),
                    default=FIT_MODES[0],
                    tooltip="How a picture of another shape is fitted (mode generate): cut the centre, pad with black, stretch.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt with the subject latent."),
                io.Conditioning.Output("negative", tooltip="The negative prompt with the subject latent."),
                io.Latent.Output(
                    "latent", tooltip="An empty latent of the same clip. For a partial denoise wire VAE Encode instead."
                ),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, vae, subject, mode, width, height, frames, fit) -> io.NodeOutput:
        latents, empty = encode_subject_pyramid(vae, subject, mode, width, height, frames, fit)
        return io.NodeOutput(attach(positive, latents=latents), attach(negative, latents=latents), {"samples": empty})


NODES = [EncodeSubjectTokens, APAConditioning, HFAPyramidEncode]
