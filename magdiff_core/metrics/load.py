"""From the user's model files to encoders."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import Tensor

from . import pictures
from .c3d import read_c3d
from .encoder_layouts import config_beside, read_clip, read_dino
from .encoders import ClipEncoder, DinoEncoder, Place, VideoEncoder, where_it_lies
from .i3d import read_i3d
from .weights_file import is_torchscript, load_torchscript, read_tensors, record_of

Path = str | os.PathLike
Tokenize = Callable[[list[str], int], tuple[Tensor, list[bool]]]


def load_clip(path: Path, tokenize: Tokenize, place: Place = where_it_lies) -> ClipEncoder:
    """A CLIP file as an encoder. Raises ValueError as `read_tensors` and `read_clip` do."""
    record = record_of(path)
    config = config_beside(path)
    towers = read_clip(read_tensors(path), record.name, config)
    return ClipEncoder(*towers, tokenize, record, place)


def load_dino(path: Path, place: Place = where_it_lies) -> DinoEncoder:
    """A DINO file as an encoder. Raises ValueError as `read_tensors` and `read_dino` do."""
    record = record_of(path)
    heads = (config_beside(path) or {}).get("num_attention_heads")
    return DinoEncoder(read_dino(read_tensors(path), record.name, heads), record, place)


def load_i3d(path: Path, allow_torchscript: bool, place: Place = where_it_lies) -> VideoEncoder:
    """An I3D file as an encoder: weights, or TorchScript (which the community shares) where that is allowed.

    The TorchScript one is called as FVD's authors' port is: clips in -1..1, no scaling of its own, features before softmax.
    """
    record = record_of(path)
    if allow_torchscript and is_torchscript(path):
        script = load_torchscript(path)
        return VideoEncoder(
            lambda clips: script(clips, rescale=False, resize=False, return_features=True), script, pictures.for_i3d, record, place
        )
    network = read_i3d(read_tensors(path), record.name)
    return VideoEncoder(network, network, pictures.for_i3d, record, place)


def load_c3d(path: Path, allow_torchscript: bool, place: Place = where_it_lies) -> VideoEncoder:
    """A C3D file as an encoder: weights, or TorchScript where that is allowed.

    The TorchScript one (`c3d_ucf101.pt`) takes RGB bytes of any size and gives probabilities of classes.
    """
    record = record_of(path)
    if allow_torchscript and is_torchscript(path):
        script = load_torchscript(path)
        return VideoEncoder(script, script, pictures.for_c3d_script, record, place)
    network = read_c3d(read_tensors(path), record.name)
    return VideoEncoder(network, network, pictures.for_c3d, record, place)
