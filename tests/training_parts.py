"""What the tests of the adapter trainer train on: a small checkpoint with all its encoders, and a few clips."""

from __future__ import annotations

import copy
from pathlib import Path

import av
import torch
from PIL import Image

SIZE = 32
FRAMES = 4


def small_config() -> dict:
    """The structure of the small model, much narrower."""
    from magdiff_core.host import own_checkpoint

    config = copy.deepcopy(own_checkpoint.MINI_CONFIG)
    config["unet"].update(model_channels=32, channel_mult=[1, 1], num_res_blocks=[1, 1], transformer_depth=[0, 1],
                          transformer_depth_output=[0, 0, 1, 1], context_dim=32, num_head_channels=16)  # fmt: skip
    for name in ("text_encoder", "image_encoder"):
        config[name].update(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=2)
    config["autoencoder"]["ddconfig"]["ch_mult"] = config["autoencoder"]["decoder_ddconfig"]["ch_mult"] = [1, 1, 1]
    config["autoencoder"]["decoder_ddconfig"]["ch"] = 32
    return config


def small_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """No tensor of the UNet at zero: gradients reach everything from the first step."""
    from magdiff_core.host import own_checkpoint

    torch.manual_seed(seed)
    weights = own_checkpoint.fresh_state_dict(small_config())
    for key, value in weights.items():
        if key.startswith(own_checkpoint.UNET_PREFIX) and not value.any():
            value.normal_(std=0.05)
    return weights


def small_checkpoint(seed: int = 0):
    from magdiff_core.host import own_checkpoint

    return own_checkpoint.assemble(small_weights(seed), small_config())


def write_clips(folder: Path, count: int = 3) -> Path:
    """Videos of noise that moves, `0.mkv` to `n.mkv`; all but the last have a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        picture = (torch.rand(SIZE, SIZE, 3, generator=generator) * 255).byte()
        with av.open(str(folder / f"{number}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=8)
            stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "bgr0"
            for frame in range(FRAMES + 2):
                pixels = picture.roll(frame, 1).contiguous().numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        (folder / f"{number}.txt").write_text("a red square moves left")
        if number < count - 1:
            mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
            mask[8:24, 8:24] = 255
            Image.fromarray(mask.numpy()).save(folder / f"{number}.mask.png")
    return folder
