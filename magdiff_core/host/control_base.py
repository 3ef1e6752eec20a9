"""Put a control file onto a stock base: the differences that it holds, on the base that they were made to and no other."""

from __future__ import annotations

import json
import logging

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..weights.revideo import CONTROL_FORMAT, CONTROL_VERSION, read_base_differences
from .adapter_file import weight_hash
from .control_file import LoadedControl, load_control
from .control_object import check_base
from .lightning_file import load_checkpoint_tensors
from .revideo_base import count_frames_of_each_call

log = logging.getLogger("magdiff")

COMPARABLE = (torch.float16, torch.float32)
"""Precisions in which a weight still has the hash of its file."""


def load_control_onto(model: ModelPatcher, path: str) -> tuple[ModelPatcher, LoadedControl]:
    """A clone of `model` with the base differences of the control file at `path`, and its control branch.

    Raises ValueError when the file is of another kind or a newer version, or when `model` is another base: by the layers of the
    trunk, by shape, and by the hash of each weight that is changed.
    """
    state_dict, metadata = load_checkpoint_tensors(path)
    if metadata.get("format", CONTROL_FORMAT) != CONTROL_FORMAT:
        raise ValueError(f"{path} is a file of format {metadata['format']}, not {CONTROL_FORMAT}")
    if metadata.get("format_version", CONTROL_VERSION) != CONTROL_VERSION:
        raise ValueError(
            f"{path} is a control file of version {metadata['format_version']}, this pack reads {CONTROL_VERSION}: update the pack"
        )
    control = load_control(path, state_dict, metadata)
    check_base(model.model.diffusion_model, control.patcher.model)
    differences = read_base_differences(state_dict)
    if not differences:
        log.warning(
            "%s holds a control branch, but no changes to the base: ReVideo trained both together, so edits come out worse. Give a "
            "control file of Split ReVideo Checkpoint, or the whole checkpoint to Load ReVideo",
            path,
        )
    base = metadata.get("base", "the base that the control file was made for")
    _check_weights(model, differences, json.loads(metadata.get("base_hashes", "{}")), base)
    model = count_frames_of_each_call(model)
    model.add_patches({f"diffusion_model.{key}": (difference,) for key, difference in differences.items()})
    return model, control


def _check_weights(model: ModelPatcher, differences: dict[str, Tensor], hashes: dict[str, str], base: str) -> None:
    weights = model.model_state_dict("diffusion_model.")
    for key, difference in differences.items():
        name = f"diffusion_model.{key}"
        # Weights in memory may carry the patches of an earlier run; the backup is the base's own.
        backup = model.backup.get(name)
        weight = weights.get(name) if backup is None else backup.weight
        if weight is None or weight.shape != difference.shape:
            found = "lacks it" if weight is None else f"has {list(weight.shape)}"
            raise ValueError(f"the control file changes {key} of shape {list(difference.shape)}, this MODEL {found}: load {base}")
        if weight.dtype not in COMPARABLE:
            log.warning("this MODEL is loaded in %s: whether it is the control file's base (%s) cannot be told", weight.dtype, base)
            return
        if key in hashes and weight_hash(weight) != hashes[key]:
            raise ValueError(f"the control file was made for another base: {key} is not the same in this MODEL. Load {base}")
    unknown = [key for key in differences if key not in hashes]
    if unknown:
        log.warning(
            "the control file changes %d weights without a hash of the base's own, such as %s: whether this MODEL is its base "
            "cannot be told. Split the checkpoint again",
            len(unknown),
            unknown[0],
        )
