"""MagDiff Sampler: the paper's settings of a stock sampler."""

from __future__ import annotations

from comfy_api.latest import io

from ..magdiff_core.host.sampling import sample


class MagDiffSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffSampler",
            display_name="MagDiff Sampler",
            category="MagDiff/sampling",
            description="DDIM with the paper's settings. The same as KSampler with ddim and ddim_uniform; other samplers work too.",
            search_aliases=["ksampler", "ddim", "video sampler", "magdiff"],
            inputs=[
                io.Model.Input("model", tooltip="The model with its adapter."),
                io.Conditioning.Input("positive", tooltip="What the clip should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent_image", tooltip="The latent to denoise, one frame a batch entry."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="Seed of the noise."
                ),
                io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Denoising steps. The paper uses 50."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the text. The paper uses 7.5, the small model wants about 2.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, part of latent_image is kept.",
                    advanced=True,
                ),
                io.Int.Input(
                    "frame_rate",
                    default=0,
                    min=0,
                    max=60,
                    tooltip="Frame rate that VideoCrafter and DynamiCrafter are told (DynamiCrafter-256: frame stride, more is "
                    "more motion). 0: the model's own.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The denoised clip, one frame a batch entry.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, steps, cfg, denoise, frame_rate=0
    ) -> io.NodeOutput:
        return io.NodeOutput(sample(model, positive, negative, latent_image, seed, steps, cfg, denoise, frame_rate))


NODES = [MagDiffSampler]
