"""The files that the Wan workflow loads, with random weights, small enough to make and to run in a test.

ComfyUI recognises the diffusion model, the autoencoder and the image encoder as it does the real ones. The text encoder of Wan has
5.7 billion weights and no smaller kin: a CLIP-L stands in for it, which ComfyUI's SD3 loader pads to the same width of 4096.
"""

from __future__ import annotations

from pathlib import Path

import torch
import wan_model
from sd21_files import Zeros, _filled, _image_encoder, _of_module, clip_layer, write

MODEL = "wan2.1_i2v_480p_14B_fp16.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
AUTOENCODER = "wan_2.1_vae.safetensors"
VISION = "clip_vision_h.safetensors"
"""The names that the example workflow asks for."""

STAND_IN = {"type": "sd3"}
"""What the text encoder's loader must be told for the stand-in."""

VAE = {
    "dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "image_channels": 3,
    "conv_out_channels": 3,
    "dropout": 0.0,
}


def _text_encoder(generator: torch.Generator) -> dict[str, torch.Tensor | Zeros]:
    width = 768
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (width, width),
    }
    for layer in range(12):
        shapes |= clip_layer(f"text_model.encoder.layers.{layer}.", width)
    return _filled(shapes, "layers.", generator)


def make(models: Path, seed: int = 0) -> None:
    """Write the four files into ComfyUI's folder `models`. ComfyUI must be importable."""
    from comfy.ldm.wan.vae import WanVAE

    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        vae = WanVAE(**VAE)
    # ComfyUI takes one head for each 128 channels
    made = {
        ("diffusion_models", MODEL): wan_model.weights(dim=128, text=4096, seed=seed),
        ("text_encoders", TEXT): _text_encoder(generator),
        ("vae", AUTOENCODER): {
            name: weight + 1 if name.endswith("gamma") else weight for name, weight in _of_module(vae, "", generator).items()
        },
        ("clip_vision", VISION): _image_encoder(generator),
    }
    for (folder, name), tensors in made.items():
        path = models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, tensors)
