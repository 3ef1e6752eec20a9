"""Load an adapter file into a model patcher of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..adapter import BASE_PREFIX, AdapterConfig, adapter_from_state_dict
from ..weights.adapter_layouts import read_adapter_weights
from .lightning_file import load_checkpoint_tensors
from .names import PATCH_KEY
from .operations import HostOperations


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter's patcher and the differences to base weights (LDM key -> difference) that its file holds."""

    patcher: comfy.model_patcher.ModelPatcher
    base_differences: dict[str, Tensor]

    @property
    def config(self) -> AdapterConfig:
        return self.patcher.model.config

    def check_base_weights(self, model: comfy.model_patcher.ModelPatcher) -> None:
        """Raise ValueError when a difference was made to another base: by shape, and by hash where the file has one."""
        weights = model.model_state_dict("diffusion_model.")
        for key, difference in self.base_differences.items():
            # Weights in memory may carry the patches of an earlier run; the backup is the base's own.
            backup = model.backup.get(f"diffusion_model.{key}")
            base = weights.get(f"diffusion_model.{key}") if backup is None else backup.weight
            if base is None or base.shape != difference.shape:
                found = "is missing" if base is None else f"has shape {tuple(base.shape)}"
                raise ValueError(
                    f"the adapter changes the base weight {key} of shape {tuple(difference.shape)}, which {found} in this MODEL: "
                    f"load {self.config.base}"
                )
            expected = self.config.base_hashes.get(key)
            if expected is not None and weight_hash(base) != expected:
                raise ValueError(
                    f"the adapter's weight differences were made to another base: {key} is not the same here. "
                    f"Load {self.config.base}, or set the base strength of the adapter to 0"
                )


def weight_hash(weight: Tensor) -> str:
    """First 16 hex digits of SHA-256 of a weight in float16, so that fp16 and fp32 files of one base agree."""
    return hashlib.sha256(weight.detach().cpu().to(torch.float16).contiguous().numpy().tobytes()).hexdigest()[:16]


def adapter_patcher(state_dict: dict[str, Tensor], config: AdapterConfig) -> LoadedAdapter:
    """Put adapter weights into a patcher that ComfyUI's memory management moves and offloads."""
    differences = {k.removeprefix(BASE_PREFIX): v for k, v in state_dict.items() if k.startswith(BASE_PREFIX)}
    adapter = adapter_from_state_dict(state_dict, config, HostOperations)
    adapter.requires_grad_(False).eval()
    # Looked up at call time: ComfyUI rebinds it when memory is managed dynamically.
    patcher = comfy.model_patcher.CoreModelPatcher(
        adapter,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.set_attachments(PATCH_KEY, differences)
    return LoadedAdapter(patcher, differences)


def load_adapter_file(path: str) -> LoadedAdapter:
    """Load the adapter parts of `path` (our own format, or a layout that `weights` knows).

    Raises ValueError for a file of another kind, a damaged one, or one without any MagDiff part.
    """
    state_dict, metadata = load_checkpoint_tensors(path)
    weights, config = read_adapter_weights(state_dict, metadata)
    loaded = adapter_patcher(weights, config)
    loaded.patcher.cached_patcher_init = (_rebuild, (path,))
    return loaded


def _rebuild(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_adapter_file(path).patcher
