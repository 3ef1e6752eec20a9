"""diffusers' own models as peers: the published configurations at small width, with random weights.

Head counts and topology are those of the published configurations; widths are 32 .. 64 channels instead of 320 .. 1280.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 64, 64)
CONTEXT = 48
HEAD_WIDTH_SD21 = 16
HEADS_SD15 = 8
FRAMES = 3
LATENT = (16, 24)

SCALED_LINEAR = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights with no layer at zero, so that every path shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return module.requires_grad_(False).eval()


def modelscope_unet(widths=WIDTHS, context=CONTEXT, head_width=HEAD_WIDTH_SD21):
    """ali-vilab/text-to-video-ms-1.7b and cerspense/zeroscope_v2_576w; their own arguments are the defaults of the class."""
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        sample_size=32, block_out_channels=widths, cross_attention_dim=context, attention_head_dim=head_width
    )


def sd15_unet(widths=WIDTHS, context=CONTEXT):
    """runwayml/stable-diffusion-v1-5."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=context, attention_head_dim=HEADS_SD15
    )


def motion_adapter(widths=WIDTHS, mid: bool = True, positions: int = 32, conv_in: int | None = None):
    """guoyww/animatediff-motion-adapter-*: v1 (no mid, 24 positions), v2 (mid, 32), v3 (no mid, 32); PIA adds `conv_in` 9."""
    from diffusers import MotionAdapter

    return MotionAdapter(
        block_out_channels=widths, use_motion_mid_block=mid, motion_max_seq_length=positions, conv_in_channels=conv_in
    )


def original_motion_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A motion adapter's weights under the names of AnimateDiff's own files."""
    renamed = {}
    for key, value in weights.items():
        if not key.startswith("conv_in"):
            head, _, rest = key.partition(".motion_modules.")
            index, rest = rest.split(".", 1)
            for ours, theirs in (
                ("attn1", "attention_blocks.0"),
                ("attn2", "attention_blocks.1"),
                ("norm1", "norms.0"),
                ("norm2", "norms.1"),
                ("norm3", "ff_norm"),
            ):
                rest = rest.replace(f"transformer_blocks.0.{ours}.", f"transformer_blocks.0.{theirs}.")
            head = f"{head}.motion_modules.{index}.temporal_transformer."
            if rest.endswith("pos_embed.pe"):
                renamed |= {f"{head}transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe": value for i in (0, 1)}
                continue
            key = head + rest
        renamed[key] = value
    return renamed


def original_modelscope_keys(weights: dict[str, Tensor], layers: int = 2, attention_below: int = 3) -> dict[str, Tensor]:
    """A UNet3DConditionModel's weights under the names of ModelScope's own file.

    `layers` of a level; the first `attention_below` levels on the way down have transformers.
    """
    outside = {
        "conv_in": "input_blocks.0.0",
        "transformer_in": "input_blocks.0.1",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    res_block = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    levels = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("down_blocks."))
    renamed = {}
    for key, value in weights.items():
        start = next((name for name in outside if key.startswith(f"{name}.")), None)
        if start:
            name = outside[start] + key[len(start) :]
        else:
            side, *rest = key.split(".")
            level = 0 if side == "mid_block" else int(rest.pop(0))
            kind, index, *inner = rest
            index, inner = int(index), ".".join(inner)
            if side == "mid_block":
                place = {"resnets": 3 * index, "temp_convs": 3 * index, "attentions": 1, "temp_attentions": 2}[kind]
                name = f"middle_block.{place}."
            elif kind == "downsamplers":
                name = f"input_blocks.{(layers + 1) * (level + 1)}."
            elif kind == "upsamplers":
                has_attention = level >= levels - attention_below
                name = f"output_blocks.{(layers + 1) * level + layers}.{3 if has_attention else 1}."
            else:
                place = {"attentions": 1, "temp_attentions": 2}.get(kind, 0)
                first = "input_blocks" if side == "down_blocks" else "output_blocks"
                name = f"{first}.{(layers + 1) * level + index + (side == 'down_blocks')}.{place}."
            if kind == "temp_convs":
                name += "temopral_conv."
            if kind == "resnets":
                module, tensor = inner.rsplit(".", 1)
                inner = f"{res_block[module]}.{tensor}"
            name += inner.replace("conv.", "op.", 1) if kind == "downsamplers" else inner
        temporal = "temp_attentions" in key or key.startswith("transformer_in")
        if temporal and key.endswith(("proj_in.weight", "proj_out.weight")):
            value = value[..., None]
        renamed[name] = value
    return renamed


class PerFrame(nn.Module):
    """A GroupNorm of diffusers' motion modules run on each frame alone, as AnimateDiff's own code does."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], dim=2)


class PerClip(nn.Module):
    """A GroupNorm of diffusers' ResBlocks (frames in the batch) run over the whole clip, as AnimateDiff v1 does."""

    def __init__(self, norm: nn.GroupNorm, frames: int):
        super().__init__()
        self.norm = norm
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        clip = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        return self.norm(clip).transpose(1, 2).flatten(0, 1)


def as_animatediff_runs(unet: nn.Module, clip_norm: bool, frames: int = FRAMES) -> nn.Module:
    """A UNetMotionModel with the norms of AnimateDiff's own code: motion modules per frame, ResBlocks per clip in v1."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    for module in list(unet.modules()):
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm = PerFrame(module.norm)
        elif clip_norm and isinstance(module, ResnetBlock2D):
            module.norm1, module.norm2 = PerClip(module.norm1, frames), PerClip(module.norm2, frames)
    if clip_norm:
        unet.conv_norm_out = PerClip(unet.conv_norm_out, frames)
    return unet


def random_latent(seed: int = 3, frames: int = FRAMES, channels: int = 4) -> Tensor:
    """`[F, C, h, w]`."""
    return torch.randn(frames, channels, *LATENT, generator=torch.Generator().manual_seed(seed))


def random_text(seed: int, width: int = CONTEXT) -> Tensor:
    """`[1, 77, width]`."""
    return torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed))


def predict(unet: nn.Module, latent: Tensor, timestep: int, text: Tensor, **options) -> Tensor:
    """One call of a diffusers video UNet on frames `[F, C, h, w]` -> `[F, 4, h, w]`."""
    from diffusers import UNetMotionModel

    with torch.no_grad():
        clip = latent.transpose(0, 1)[None]
        if isinstance(unet, UNetMotionModel):
            # Its pipelines repeat the text to the frames, those of UNet3D do not.
            text = text.expand(len(latent), -1, -1)
        return unet(clip, timestep, encoder_hidden_states=text, **options).sample[0].transpose(0, 1)
