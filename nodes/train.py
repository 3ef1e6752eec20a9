"""Train MagDiff Adapter: an adapter for a base, on the user's own clips."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..magdiff_core.data.video_clips import Sampling, clips_state
from ..magdiff_core.host.loaded_checkpoint import LoadedCheckpoint
from ..magdiff_core.host.training_progress import AUTO
from ..magdiff_core.train.adapter_node import train_in_graph
from ..magdiff_core.train.adapter_run import AdapterOptions
from ..magdiff_core.train.engine import PRECISIONS

MAGDIFF, TEXT_TO_VIDEO = "magdiff", "text-to-video"


class TrainMagDiffAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffTrainAdapter",
            display_name="Train MagDiff Adapter",
            category="MagDiff/training",
            description="Trains an adapter on a folder of your own clips with captions and masks, in the paper's stages, and "
            "writes it to models/magdiff. Cancel keeps the state: the same node goes on where it stopped.",
            search_aliases=["finetune", "fine-tune", "train", "lora", "motion module", "magdiff"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base, or a base with an adapter on it (Apply MagDiff Adapter) to go on from. No LoRA."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the base."),
                io.Vae.Input("vae", tooltip="The autoencoder of the base."),
                io.String.Input(
                    "clips",
                    default="",
                    tooltip="Folder of videos, each with its caption (dog.mp4, dog.txt) and, where there is one, the mask of its "
                    "subject (dog.mask.png of the first frame, or dog.mask.mp4); or a CSV with columns video, caption and mask.",
                ),
                io.Combo.Input(
                    "stage",
                    options=[MAGDIFF, TEXT_TO_VIDEO],
                    default=MAGDIFF,
                    tooltip="magdiff: everything that MagDiff adds, and the attention of the base. text-to-video: only the layers "
                    "along time, the paper's first stage.",
                ),
                io.String.Input(
                    "file_name",
                    default="my-adapter.safetensors",
                    tooltip="Name of the adapter in models/magdiff, and of its training.",
                ),
                io.Int.Input(
                    "steps", default=2000, min=1, max=10_000_000, tooltip="Steps in all. More than before: the training goes on."
                ),
                io.Int.Input("batch", default=1, min=1, max=1024, tooltip="Clips a step. The paper's is 64."),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Parts in which the clips of a step are computed, to save memory; it must divide batch.",
                    advanced=True,
                ),
                io.Float.Input(
                    "learning_rate", default=5e-5, min=1e-8, max=1.0, step=1e-6, round=False, tooltip="The paper's is 0.00005."
                ),
                io.Int.Input("frames", default=8, min=1, max=128, tooltip="Frames of a clip. The paper's is 8."),
                io.Int.Input(
                    "size",
                    default=256,
                    min=16,
                    max=2048,
                    step=8,
                    tooltip="Side of the square that is cut out of each frame, in pixels.",
                ),
                io.Float.Input("frame_rate", default=8.0, min=0.1, max=120.0, tooltip="Frames that are taken of each second."),
                io.Int.Input(
                    "windows",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Clips that are taken of each video, one after the other.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "precision",
                    options=[AUTO, *PRECISIONS],
                    default=AUTO,
                    tooltip="Mixed precision; trained weights are float32 in any case. auto: what your device is fast in.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "checkpoint_layers",
                    default=True,
                    tooltip="Gradient checkpointing: much less memory, about a third slower.",
                    advanced=True,
                ),
                io.Int.Input(
                    "sample_steps", default=250, min=1, max=1_000_000, tooltip="Steps between sample pictures.", advanced=True
                ),
                io.Int.Input("save_steps", default=250, min=1, max=1_000_000, tooltip="Steps between saves.", advanced=True),
                io.Boolean.Input("half", default=True, tooltip="Writes the adapter in float16, half the size.", advanced=True),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1, tooltip="Order of clips, noise, and the start of new weights."
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="The image encoder that will read the subject; stage magdiff needs one."
                ),
            ],
            outputs=[
                io.Combo.Output("adapter", tooltip="The adapter's name, for the widget adapter of Apply MagDiff Adapter."),
                io.Image.Output("loss_curve", tooltip="The loss over the steps."),
                io.Image.Output("samples", tooltip="Clips made with the averaged weights: subject first, then the frames."),
                io.String.Output("text", tooltip="What was trained, where its files are, and which clips could not be used."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, clips: str = "", **_) -> str:
        return clips_state(Path(clips))

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        clips: str,
        stage: str,
        file_name: str,
        steps: int,
        batch: int,
        accumulate: int,
        learning_rate: float,
        frames: int,
        size: int,
        frame_rate: float,
        windows: int,
        precision: str,
        checkpoint_layers: bool,
        sample_steps: int,
        save_steps: int,
        half: bool,
        seed: int,
        clip_vision=None,
    ) -> io.NodeOutput:
        if not clips.strip():
            raise ValueError("clips is empty: give a folder of videos with captions, or a CSV")
        options = AdapterOptions(
            data=Path(clips.strip()),
            folder=Path(),
            steps=steps,
            stage=stage,
            sampling=Sampling(frames, size, frame_rate, windows, seed),
            batch=batch,
            accumulate=accumulate,
            rate=learning_rate,
            seed=seed,
            checkpoint_layers=checkpoint_layers,
            save_steps=save_steps,
            sample_steps=sample_steps,
            half=half,
        )
        loaded = LoadedCheckpoint(model, clip, vae, clip_vision)
        name, curve, samples, text = train_in_graph(loaded, options, file_name, precision)
        shown = ui.PreviewImage(curve, cls=cls).as_dict()
        return io.NodeOutput(name, curve, samples, text, ui={**shown, "text": [text]})


NODES = [TrainMagDiffAdapter]
