"""The user's metric models as ComfyUI's memory management sees them."""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ..metrics import load
from ..metrics.evaluation import Models
from .clip_tokens import tokenize

FOLDER = "metrics"
NO_FILE = "none"
CLIP_FOLDERS = (FOLDER, "clip_vision", "text_encoders")
"""Whole CLIP files lie in any of these."""
EXTENSIONS = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin", ".pickle")
ROOM = 1 << 30
"""Bytes that a batch takes beside the weights: 16 pictures in the largest CLIP, 8 clips in I3D."""

_kept: dict[str, tuple[tuple, object]] = {}
"""By kind of model, the one used last: a changed prompt must not read gigabytes again. Core says where its weights lie."""


def register_folder() -> None:
    """Make `models/metrics` known, behind folders that another pack or extra_model_paths.yaml registered."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def file_names(folders: tuple[str, ...] = (FOLDER,)) -> list[str]:
    """Entry "none", then the weight files of the folders. A workflow saved with "none" must run where there are files."""
    register_folder()
    names = [NO_FILE]
    for folder in folders:
        names += [
            name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(EXTENSIONS) and name not in names
        ]
    return names


def _path_of(name: str, folders: tuple[str, ...]) -> str:
    for folder in folders:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return path
    places = [place for folder in folders for place in folder_paths.get_folder_paths(folder)]
    raise FileNotFoundError(f"{name} is in none of: {', '.join(places)}")


def _place() -> Callable[[torch.nn.Module], torch.device]:
    """Brings modules onto ComfyUI's device when they are asked for; each keeps the patcher of its first time."""
    patchers: dict[int, comfy.model_patcher.ModelPatcher] = {}

    def place(module: torch.nn.Module) -> torch.device:
        device = comfy.model_management.get_torch_device()
        if isinstance(module, torch.jit.ScriptModule):
            # A script's weights cannot be patched or moved part by part.
            comfy.model_management.free_memory(ROOM, device)
            module.to(device)
            return device
        if id(module) not in patchers:
            patchers[id(module)] = comfy.model_patcher.ModelPatcher(
                module, load_device=device, offload_device=comfy.model_management.unet_offload_device()
            )
        # The networks are made of plain torch layers, which cannot be streamed: they are loaded whole.
        comfy.model_management.load_models_gpu([patchers[id(module)]], memory_required=ROOM, force_full_load=True)
        return device

    return place


def _load(kind: str, name: str, folders: tuple[str, ...], read: Callable, *more):
    if name == NO_FILE:
        return None
    register_folder()
    path = _path_of(name, folders)
    key = (path, os.path.getmtime(path), *more)
    if _kept.get(kind, (None,))[0] != key:
        _kept.pop(kind, None)
        _kept[kind] = (key, read(path, *more, place=_place()))
    return _kept[kind][1]


def load_models(clip: str, dino: str, i3d: str, c3d: str, allow_torchscript: bool) -> Models:
    """The chosen files as networks, "none" for none.

    Raises:
        ValueError: a file that is another model, or TorchScript without `allow_torchscript`.
        FileNotFoundError: a file that is gone.
    """
    return Models(
        clip=_load("clip", clip, CLIP_FOLDERS, lambda path, place: load.load_clip(path, tokenize, place)),
        dino=_load("dino", dino, (FOLDER,), load.load_dino),
        i3d=_load("i3d", i3d, (FOLDER,), load.load_i3d, allow_torchscript),
        c3d=_load("c3d", c3d, (FOLDER,), load.load_c3d, allow_torchscript),
    )


def put_away(models: Models) -> None:
    """Take TorchScript networks off the device: core does not know of them, so it could not make room."""
    for model in (models.i3d, models.c3d):
        if model is not None and isinstance(model.module, torch.jit.ScriptModule):
            model.module.to(comfy.model_management.unet_offload_device())
