"""The two files of the small model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapter import AdapterConfig
from ..host import own_checkpoint
from .checkpoint import load_state, write_atomically

CHECKPOINT_NAME = "magdiff-mini.safetensors"
ADAPTER_NAME = "magdiff-mini-adapter.safetensors"
ADAPTER_PREFIX = "adapter."


def write_files(
    folder: Path,
    checkpoint: dict[str, Tensor],
    adapter: dict[str, Tensor],
    config: dict,
    adapter_config: AdapterConfig,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes checkpoint and adapter into `folder`, each in one step."""
    write_atomically(folder / CHECKPOINT_NAME, lambda path: own_checkpoint.save_own_checkpoint(path, checkpoint, config, dtype))
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in adapter.items()}
    write_atomically(folder / ADAPTER_NAME, lambda path: save_file(tensors, path, metadata=adapter_config.to_metadata()))


def read_files(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of checkpoint and adapter in `folder`, float32. Raises OSError where one is missing."""
    weights = [load_file(folder / name) for name in (CHECKPOINT_NAME, ADAPTER_NAME)]
    checkpoint, adapter = (
        {name: value.float() if value.is_floating_point() else value for name, value in part.items()} for part in weights
    )
    return checkpoint, adapter


def run(
    folder: Path,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
    diffusion: Path | None = None,
    config: dict | None = None,
) -> None:
    """Writes the files from training states; a part without one stays untrained.

    Args:
        autoencoder: `autoencoder.pt` of the first stage.
        encoder: `subject_encoder.pt` of the second.
        diffusion: `state.pt` of the last; its averaged weights are taken.
    """
    from . import autoencoder as autoencoder_stage
    from . import subject_encoder
    from .diffusion import Stage

    config = config or own_checkpoint.MINI_CONFIG
    trained = autoencoder_stage.load(autoencoder, config["autoencoder"]) if autoencoder else None
    stage = Stage(config, trained, encoder=subject_encoder.load(encoder) if encoder else None)
    values = load_state(diffusion)["average"]["values"] if diffusion else {}
    write_files(folder, *stage.state_dicts(values), config, stage.adapter_config)


def put_decoder(folder: Path, start_from: Path, autoencoder: Path, config: dict | None = None) -> None:
    """Writes the pair of model files in `start_from` with the decoder of an `autoencoder.pt` to `folder`.

    Raises ValueError when its encoder is another one: the UNet would not know the latents.
    """
    from . import autoencoder as autoencoder_stage

    config = config or own_checkpoint.MINI_CONFIG
    checkpoint, adapter = read_files(start_from)
    trained = autoencoder_stage.load(autoencoder, config["autoencoder"]).state_dict()
    for name, value in trained.items():
        key = own_checkpoint.VAE_PREFIX + name
        if name.startswith(("encoder.", "quant_conv.")) and not torch.equal(value.half(), checkpoint[key].half()):
            raise ValueError(
                f"{autoencoder} has another encoder than {start_from} ({name}): only the decoder may differ, train it with "
                f"autoencoder --start-from {start_from}"
            )
        checkpoint[key] = value
    with safe_open(start_from / ADAPTER_NAME, "pt") as file:
        adapter_config = AdapterConfig.from_metadata(file.metadata())
    write_files(folder, checkpoint, adapter, config, adapter_config)
