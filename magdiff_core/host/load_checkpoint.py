"""Load any checkpoint that holds a whole model, recognised by its keys and metadata."""

from __future__ import annotations

import comfy.sd
import folder_paths

from ..weights.adapter_layouts import ADAPTER, RELEASED, kind_of
from ..weights.foreign import describe
from .foreign_checkpoint import load_full_checkpoint
from .lightning_file import load_checkpoint_tensors
from .loaded_checkpoint import LoadedCheckpoint
from .own_checkpoint import is_own_checkpoint, load_own_checkpoint


def load_checkpoint(path: str, variant: str | None = None) -> LoadedCheckpoint:
    """The small model of this pack, a published whole model (`weights.families`), or any checkpoint that ComfyUI itself loads.

    `variant`: which of several models it is, where the weights do not tell (`weights.lvdm_settings.VARIANTS`).

    Raises ValueError naming the file for an adapter, which is no whole model, and for a file that is of no known kind, damaged
    or incomplete.
    """
    state_dict, metadata = load_checkpoint_tensors(path)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if is_own_checkpoint(metadata):
        return load_own_checkpoint(path, embeddings)
    kind = kind_of(state_dict, metadata)
    if kind == ADAPTER:
        raise ValueError(
            f"{path} is a MagDiff adapter, which holds no base model: load a base with Load Checkpoint and put the adapter on it "
            "with Apply MagDiff Adapter"
        )
    if kind == RELEASED:
        return load_full_checkpoint(path, state_dict, variant)
    if variant is not None:
        raise ValueError(f"variant is {variant!r}, but {path} is no DynamiCrafter model: set it back to automatic")
    what = describe(state_dict)
    # Core reads the file itself, so that it can do so again: two copies would not fit everywhere.
    del state_dict
    try:
        model, clip, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(
            path, output_clipvision=True, embedding_directory=embeddings
        )
    except RuntimeError as error:
        raise ValueError(f"{path} holds no model that can be loaded: {what}") from error
    if vae is not None and vae.first_stage_model is None:
        vae = None
    return LoadedCheckpoint(model, clip, vae, clip_vision)
