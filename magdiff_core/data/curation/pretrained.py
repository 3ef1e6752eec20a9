"""Models of transformers from folders that the user names; nothing is ever downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NEEDED = "pip install 'transformers>=4.56'"


@dataclass(frozen=True)
class Place:
    """Where and in which precision a model runs."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


def load_pretrained(folder: Path, model: str, processor: str, place: Place) -> tuple[torch.nn.Module, object]:
    """A model of transformers and its processor, by the names of their classes.

    Raises ImportError when transformers is missing or too old, FileNotFoundError when there is no such folder, ValueError when it
    holds another model.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{model} needs transformers: {NEEDED}") from error
    if not hasattr(transformers, model) or not hasattr(transformers, "Sam2VideoModel"):
        raise ImportError(f"transformers {transformers.__version__} is too old for {model}: {NEEDED}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"there is no config.json in {folder}: name the folder that the model was downloaded into")
    try:
        made = getattr(transformers, processor).from_pretrained(folder, local_files_only=True)
        network = getattr(transformers, model).from_pretrained(folder, local_files_only=True, dtype=place.dtype)
    except ImportError as error:
        raise ImportError(f"{model} needs more than is installed: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} is no {model} that transformers {transformers.__version__} can load: {error}") from error
    return network.to(place.device).eval().requires_grad_(False), made


def to_place(inputs: dict, network: torch.nn.Module) -> dict:
    """A processor's tensors on the model's device, those that are no whole numbers in its dtype."""
    device, dtype = network.device, network.dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
