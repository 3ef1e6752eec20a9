"""Segment Anything as ComfyUI's memory management sees it: a ModelPatcher, loaded by `load_models_gpu`."""

from __future__ import annotations

import logging
import os

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ..segment.sam import SamSegmenter, build_sam, detect_sizes, read_state_dict

log = logging.getLogger("magdiff")

FOLDER = "sams"
NO_FILE = "none"
EXTENSIONS = (".pth", ".pt", ".safetensors")

_last: dict[tuple[str, float], comfy.model_patcher.ModelPatcher] = {}
"""The model used last: moving a slider must not read 400 MB to 2.5 GB again. Where its weights lie is core's say."""


class _Room(torch.nn.Module):
    """Holds the model: a patcher sets `device` on its module, which `Sam` defines as read-only."""

    def __init__(self, sam: torch.nn.Module) -> None:
        super().__init__()
        self.sam = sam


def register_folder() -> None:
    """Make `models/sams` known, behind folders that another pack or extra_model_paths.yaml registered."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def sam_files() -> list[str]:
    """Entry "none", then the files of `models/sams`. A workflow saved with "none" must run where there are files."""
    register_folder()
    return [NO_FILE] + [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(EXTENSIONS)]


def load_sam(name: str) -> SamSegmenter:
    """Load a file of `models/sams` onto ComfyUI's device.

    Args:
        name: as listed by `sam_files`.

    Raises:
        ValueError: no file chosen, or one that is no Segment Anything model.
        FileNotFoundError: when the file is gone.
    """
    if name == NO_FILE:
        raise ValueError(
            "method SAM needs a model file: put sam_vit_b, sam_vit_l or sam_vit_h (.pth or .safetensors) into "
            "models/sams and press R to refresh, or choose method GrabCut, which needs none."
        )
    register_folder()
    path = folder_paths.get_full_path_or_raise(FOLDER, name)
    key = (path, os.path.getmtime(path))
    if key not in _last:
        state = read_state_dict(path)
        log.info("%s: Segment Anything %s.", name, detect_sizes(state, name).variant)
        # segment-anything is made of plain torch layers, which cannot be streamed part by part: the classic patcher
        # loads them whole.
        patcher = comfy.model_patcher.ModelPatcher(
            _Room(build_sam(state, name)),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        _last.clear()
        _last[key] = patcher
    patcher = _last[key]
    # Attention over all patches of a 1024 x 1024 picture, 16 heads in float32, is what an encoder block needs beside
    # its weights.
    comfy.model_management.load_models_gpu([patcher], memory_required=3 * 1024**3, force_full_load=True)
    return SamSegmenter(patcher.model.sam)
