"""Compose Adapter: one adapter out of parts of several files."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..magdiff_core.host.compose import compose_files
from ..magdiff_core.host.folders import checkpoint_names, find_checkpoint, new_file
from ..magdiff_core.weights.compose import IMAGE, SUBJECT, TEMPORAL, ZERO

NONE = "none"


class ComposeAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = checkpoint_names()
        return io.Schema(
            node_id="MagDiffComposeAdapter",
            display_name="Compose Adapter",
            category="MagDiff/loaders",
            description="Writes one adapter, once, out of parts of several files: layers along time, image stream, subject branch. "
            "Its metadata says where each part came from and under which licence. A pickle becomes safetensors, and is not run.",
            search_aliases=["convert", "merge", "extract", "safetensors", "vidrd", "videocrafter", "dynamicrafter", "magdiff"],
            inputs=[
                io.Combo.Input(
                    "temporal_from",
                    options=[NONE, *names],
                    default=NONE,
                    tooltip="File of models/magdiff or models/checkpoints that gives the layers along time, for example VidRD's.",
                ),
                io.Combo.Input(
                    "image_from",
                    options=[NONE, *names],
                    default=NONE,
                    tooltip="File that gives the image stream: keys, values, projector and learned weights, for example "
                    "VideoCrafter1's image-to-video.",
                ),
                io.Combo.Input(
                    "subject_from",
                    options=[NONE, ZERO, *names],
                    default=NONE,
                    tooltip="File that gives the subject branch. zero: a new one that changes nothing until it is trained.",
                ),
                io.String.Input(
                    "file_name", default="composed-adapter.safetensors", tooltip="Name of the adapter in models/magdiff."
                ),
            ],
            outputs=[
                io.Combo.Output("adapter", tooltip="The adapter's name, for the widget adapter of Apply MagDiff Adapter."),
                io.String.Output("text", tooltip="What was written, from which files, and under which licences."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, temporal_from, image_from, subject_from, file_name) -> io.NodeOutput:
        chosen = {TEMPORAL: temporal_from, IMAGE: image_from, SUBJECT: subject_from}
        files = {part: name if name == ZERO else find_checkpoint(name) for part, name in chosen.items() if name != NONE}
        text = str(compose_files(files, new_file(file_name, "composed-adapter.safetensors")))
        return io.NodeOutput(file_name, text, ui=ui.PreviewText(text))


NODES = [ComposeAdapter]
