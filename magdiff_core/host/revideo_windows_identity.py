"""A digest of everything that a result depends on, so that what was computed before is taken up only where it is the same.

Inputs are hashed whole. Weights are hashed by a sample of each tensor: a model that was trained, merged or quantised differs in
nearly every value. Patches, options and functions on a model are described by value; what cannot be described that way makes the
digest unrepeatable, so nothing is ever taken up by mistake.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import types
import uuid
from collections.abc import Iterator, Mapping
from enum import Enum

import comfy.model_base
import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

log = logging.getLogger("magdiff")

SAMPLES = 256
"""Values of a weight tensor that are hashed, evenly spread."""


def identity_of(*values: object) -> str:
    """Digest (hexadecimal) of numbers, texts, tensors, models, functions, and of containers and objects made of them.

    Equal values give equal digests, in every process and wherever the weights lie. Sharing of objects makes no difference.
    """
    return _Digests().of(list(values))


class _Digests:
    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        self._open: set[int] = set()
        # Objects whose id was noted must live as long as the note.
        self._kept: list[object] = []

    def of(self, value: object) -> str:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Enum)):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, (torch.dtype, torch.device, torch.Size)):
            return _hash("torch", str(value))
        key = id(value)
        if key in self._open:
            return _hash("cycle")
        if key not in self._known:
            self._open.add(key)
            try:
                kind, parts = _parts(value)
            except Exception as error:  # a kind of tensor or object that others made, and that cannot be read
                kind, parts = _unknown(value, error)
            self._known[key] = _hash(kind, *(self.of(part) for part in parts))
            self._kept.append(value)
            self._open.remove(key)
        return self._known[key]


def _hash(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        data = text.encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _name(kind: type | types.FunctionType | types.BuiltinFunctionType) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _parts(value: object) -> tuple[str, list]:
    """What kind of thing `value` is, and the values that it consists of."""
    if isinstance(value, Tensor):
        return "tensor", [_tensor(value)]
    if isinstance(value, Mapping):
        return "mapping", [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return "list", list(value)
    if isinstance(value, (set, frozenset)):
        return "set", sorted(value, key=repr)
    if isinstance(value, type):
        return "class", [_name(value)]
    if isinstance(value, ModelPatcher):
        return "model", _patcher(value)
    if isinstance(value, ClipVisionModel):
        return "image encoder", [value.config, value.image_size, value.image_mean, value.image_std, value.dtype, value.patcher]
    if isinstance(value, comfy.sd.VAE):
        return "autoencoder", [value.vae_dtype, value.latent_dim, value.downscale_ratio, value.patcher]
    if isinstance(value, torch.nn.Module):
        numbers = {name: item for name, item in vars(value).items() if isinstance(item, (bool, int, float, str))}
        return "module", [type(value), numbers, *_weights(value, {})]
    if isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return "function", [_name(value), value.__defaults__, value.__kwdefaults__, held]
    if isinstance(value, types.MethodType):
        return "method", [value.__func__, value.__self__]
    if isinstance(value, types.BuiltinFunctionType):
        return "builtin", [_name(value)]
    if isinstance(value, functools.partial):
        return "partial", [value.func, value.args, value.keywords]
    if hasattr(value, "__dict__"):
        return "object", [type(value), vars(value)]
    return _unknown(value)


def _unknown(value: object, error: Exception | None = None) -> tuple[str, list]:
    why = "" if error is None else f" ({error})"
    log.warning("a %s on a model cannot be recognised again%s: an interrupted clip will start anew", type(value).__name__, why)
    return "unknown", [uuid.uuid4().hex]


def _tensor(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


def _weights(module: torch.nn.Module, originals: Mapping[str, Tensor]) -> Iterator[str]:
    for key, weight in module.state_dict().items():
        weight = originals.get(key, weight).detach()
        step = max(1, weight.numel() // SAMPLES)
        yield f"{key} {list(weight.shape)} {_tensor(weight.reshape(-1)[::step])}"


def _patcher(patcher: ModelPatcher) -> list:
    """Weights without patches, then what is patched. Weights in memory may carry patches: the backup holds the originals."""
    model, prefix, settings = patcher.model, "", []
    if isinstance(model, comfy.model_base.BaseModel):
        # The sampling object in memory may be a patch of the run before; this asks for that of `patcher`.
        sampling = patcher.get_model_object("model_sampling")
        settings = [model.model_config.unet_config, type(model.latent_format), model.manual_cast_dtype, sampling]
        model, prefix = model.diffusion_model, "diffusion_model."
    originals = {key.removeprefix(prefix): saved.weight for key, saved in patcher.backup.items()}
    return [
        type(patcher.model),
        settings,
        list(_weights(model, originals)),
        patcher.patches,
        patcher.hook_patches,
        patcher.object_patches,
        patcher.weight_wrapper_patches,
        patcher.model_options,
        patcher.wrappers,
        patcher.injections,
        patcher.additional_models,
    ]
