"""A LoRA and a ControlNet with random weights for the small files of `sd21_files`."""

from __future__ import annotations

from pathlib import Path

import sd21_files
import torch

LORA = "my-sd21-lora.safetensors"
CONTROL = "control_v11p_sd21_canny.safetensors"
"""The names that the example workflow asks for."""

_LORA_LAYERS = ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0")
_RANK = 4


def make(models: Path, seed: int = 0) -> None:
    """Write both files into ComfyUI's folder `models`. ComfyUI must be importable."""
    import comfy.cldm.cldm
    import comfy.ops

    generator = torch.Generator().manual_seed(seed)
    left_out = ("out_channels", "transformer_depth_output")
    settings = {name: value for name, value in sd21_files.UNET.items() if name not in left_out}
    settings["transformer_depth"] = list(settings["transformer_depth"])
    with torch.device("meta"):
        network = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **settings)
    lora = {}
    for name in _LORA_LAYERS:
        width = 320
        lora[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(width, _RANK, generator=generator)
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(_RANK, width, generator=generator) / width**0.5
    for folder, name, tensors in (
        ("loras", LORA, lora),
        ("controlnet", CONTROL, sd21_files._of_module(network, "", generator)),
    ):
        path = models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sd21_files.write(path, tensors)
