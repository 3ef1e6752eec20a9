"""APA for Wan: the two sliders on Wan 2.1 image-to-video, without any weights of ours."""

from __future__ import annotations

from comfy_api.latest import io

from ..magdiff_core.alignment.apa import AlphaSettings
from ..magdiff_core.host.wan import apply_wan_alphas
from .common_inputs import ALPHA, PERCENT


class APAForWan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffAPAForWan",
            display_name="APA for Wan",
            category="MagDiff/conditioning",
            description="Weighs text against picture inside the cross-attention of Wan 2.1 image-to-video. Needs no file of its "
            "own; both sliders at 1 are exactly the plain model. Applying again replaces the sliders.",
            search_aliases=["wan", "i2v", "image to video", "alpha", "image strength", "prompt strength", "apa", "magdiff"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Wan 2.1 image-to-video, or a relative with its picture stream: FLF2V, Fun, Animate."
                ),
                io.Float.Input("alpha_text", default=1.0, tooltip="Strength of the text. 1 = as trained, 0 = none.", **ALPHA),
                io.Float.Input(
                    "alpha_image",
                    default=1.0,
                    tooltip="Strength of the picture's CLIP vision tokens. 1 = as trained, 0 = none. The first frame stays given.",
                    **ALPHA,
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    tooltip="Part of sampling at which the sliders start to act. Before it the model is the plain one.",
                    **PERCENT,
                ),
                io.Float.Input("end_percent", default=1.0, tooltip="Part of sampling at which the sliders stop to act.", **PERCENT),
                io.Int.Input(
                    "first_block", default=0, min=0, max=999, tooltip="First block in which the sliders act, from 0.", advanced=True
                ),
                io.Int.Input(
                    "last_block",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip="Last block in which the sliders act. -1 = the last one of the model (39 in Wan 14B).",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the sliders.")],
        )

    @classmethod
    def execute(cls, model, alpha_text, alpha_image, start_percent, end_percent, first_block, last_block) -> io.NodeOutput:
        alphas = AlphaSettings(alpha_text, alpha_image, start_percent, end_percent)
        return io.NodeOutput(apply_wan_alphas(model, alphas, first_block, last_block))


NODES = [APAForWan]
