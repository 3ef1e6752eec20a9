"""Load MagDiff Checkpoint and Apply MagDiff Adapter."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..magdiff_core.host.adapter_file import load_adapter_file
from ..magdiff_core.host.attach import apply_adapter
from ..magdiff_core.host.call import PartStrengths
from ..magdiff_core.host.folders import MAGDIFF_FOLDER, checkpoint_names, find_checkpoint
from ..magdiff_core.host.load_checkpoint import load_checkpoint
from ..magdiff_core.weights.lvdm_settings import VARIANTS

CATEGORY = "MagDiff/loaders"

AUTOMATIC = "automatic"
WHAT_TO_LOAD = {
    "model": "use Load Checkpoint with an SD2.1 base, then Apply MagDiff Adapter",
    "clip": "use Load CLIP with the text encoder of SD2.1",
    "vae": "use Load VAE with the VAE of SD1.5 or SD2.1",
    "clip_vision": "use Load CLIP Vision with CLIP-ViT-H-14",
}


class LoadMagDiffCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffLoadCheckpoint",
            display_name="Load MagDiff Checkpoint",
            category=CATEGORY,
            description="Loads every part that a checkpoint holds: the pack's own small model, MagDiff.pth, VidRD, DynamiCrafter, "
            "VideoCrafter, ModelScope, or a plain Stable Diffusion checkpoint. "
            "The file is recognised by its contents, not by its name.",
            search_aliases=["magdiff", "checkpoint loader", "vidrd", "video model", "load model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="Files of models/magdiff, models/checkpoints and the small model that comes with the pack.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTOMATIC, *VARIANTS],
                    default=AUTOMATIC,
                    tooltip="Which DynamiCrafter it is, where the file was pruned of what tells it: the 512 and 1024 models have "
                    "the same weights by name and size.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The UNet; with the adapter on it where the file holds one."),
                io.Clip.Output("clip", tooltip="The text encoder."),
                io.Vae.Output("vae", tooltip="The autoencoder."),
                io.ClipVision.Output("clip_vision", tooltip="The image encoder."),
            ],
        )

    @classmethod
    def execute(cls, checkpoint, variant=AUTOMATIC) -> io.NodeOutput:
        choice = {} if variant == AUTOMATIC else {"variant": variant}
        loaded = load_checkpoint(find_checkpoint(checkpoint), **choice)
        parts = []
        for name, advice in WHAT_TO_LOAD.items():
            part = getattr(loaded, name)
            parts.append(ExecutionBlocker(f"{checkpoint} holds no {name}: {advice}") if part is None else part)
        return io.NodeOutput(*parts)


class ApplyMagDiffAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="MagDiffApplyAdapter",
            display_name="Apply MagDiff Adapter",
            category=CATEGORY,
            description="Puts the weights of an adapter file onto a Stable Diffusion 1.5 or 2.1 model: temporal layers, image "
            "stream and subject pyramid. All strengths 0 is exactly the plain model. Applying again replaces the adapter.",
            search_aliases=["magdiff", "motion module", "animatediff", "ipadapter", "adapter loader"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the base that the adapter was trained on."),
                io.Combo.Input(
                    "adapter",
                    options=folder_paths.get_filename_list(MAGDIFF_FOLDER),
                    tooltip="A file of models/magdiff, or the small adapter that comes with the pack.",
                ),
                io.Float.Input("temporal_strength", tooltip="Layers along time. At 0 the model makes single pictures.", **strength),
                io.Float.Input("image_strength", tooltip="The image stream of cross-attention.", **strength),
                io.Float.Input("pyramid_strength", tooltip="The subject latent with its pyramid.", **strength),
                io.Float.Input(
                    "base_strength",
                    tooltip="Changes to weights of the base itself, where the adapter has any.",
                    advanced=True,
                    **strength,
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the adapter.")],
        )

    @classmethod
    def execute(cls, model, adapter, temporal_strength, image_strength, pyramid_strength, base_strength) -> io.NodeOutput:
        strengths = PartStrengths(temporal_strength, image_strength, pyramid_strength, base_strength)
        loaded = load_adapter_file(folder_paths.get_full_path_or_raise(MAGDIFF_FOLDER, adapter))
        return io.NodeOutput(apply_adapter(model, loaded, strengths))


NODES = [LoadMagDiffCheckpoint, ApplyMagDiffAdapter]
