"""The trunk of a control branch: the encoder and the middle of ComfyUI's own UNet."""

from __future__ import annotations

import comfy.model_detection
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, CrossAttention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from torch import Tensor, nn

from .operations import HostOperations

HEAD_CHANNELS = 64
"""Width of an attention head of SVD, which no weight tells."""


def trunk_config(weights: dict[str, Tensor], head_channels: int = HEAD_CHANNELS) -> dict:
    """Arguments of a `UNetModel` whose encoder and middle have these weights (names of a UNet, without prefix).

    Raises ValueError when they are none of a UNet.
    """
    config = comfy.model_detection.detect_unet_config(weights, "")
    if config is None:
        raise ValueError("the trunk of this control branch is no UNet encoder that ComfyUI knows")
    config.update(num_heads=-1, num_head_channels=head_channels, image_size=32, use_spatial_transformer=True, legacy=False)
    # Built on the meta device and dropped at once, so that nothing depends on how the decoder looks.
    config["transformer_depth_output"] = [0] * sum(count + 1 for count in config["num_res_blocks"])
    if config["use_temporal_resblock"]:
        config["attn_precision"] = torch.float32
    return config


class ShortCrossAttention(CrossAttention):
    """Cross-attention that does no more than needed where there is a single token: softmax over one key is 1.

    SVD's context is one token a frame, so queries, keys and the attention itself are dead work in every block.
    """

    @classmethod
    def like(cls, attention: CrossAttention, operations) -> ShortCrossAttention:
        """One of the same sizes, without memory of its own."""
        return cls(
            attention.to_q.in_features,
            attention.to_k.in_features,
            attention.heads,
            attention.dim_head,
            attn_precision=attention.attn_precision,
            device="meta",
            operations=operations,
        )

    def forward(self, x: Tensor, context: Tensor | None = None, value=None, mask=None, transformer_options=None) -> Tensor:
        if context is not None and context.shape[1] == 1 and value is None and mask is None:
            return self.to_out(self.to_v(context)).expand_as(x)
        return super().forward(x, context, value, mask, transformer_options or {})


class ControlTrunk(nn.Module):
    """The base UNet's encoder and middle with weights of its own.

    It has no memory of its own until weights are assigned to it (`load_state_dict(..., assign=True)`).
    """

    def __init__(self, config: dict, operations=HostOperations):
        super().__init__()
        unet = UNetModel(**config, device="meta", operations=operations)
        self.model_channels = unet.model_channels
        self.time_embed = unet.time_embed
        self.label_emb = unet.label_emb if unet.num_classes is not None else None
        self.input_blocks = unet.input_blocks
        self.middle_block = unet.middle_block
        for block in [module for module in self.modules() if isinstance(module, BasicTransformerBlock)]:
            if block.attn2 is not None:
                block.attn2 = ShortCrossAttention.like(block.attn2, operations)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None, fused: Tensor, frames: int, options: dict
    ) -> tuple[list[Tensor], Tensor]:
        """Outputs of every block of the encoder, and of the middle.

        `x`: `[clips * F, C_in, h, w]`, all that the base's first layer gets. `t`: `[clips * F]`, the base's own timestep.
        `context`: `[clips * F, L, D]`; `y`: `[clips * F, D]` or None. `fused`: f_c `[F, C, h, w]`, added once, after the first
        convolution, to every clip. `options`: transformer_options for the attention layers.
        """
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        # image_only_indicator None: every picture belongs to a clip. No time_context: that of each clip's first frame.
        temporal = {"num_video_frames": frames, "image_only_indicator": None, "transformer_options": options}
        outputs = []
        h = x
        for index, block in enumerate(self.input_blocks):
            h = forward_timestep_embed(block, h, emb, context, **temporal)
            if index == 0:
                h = (h.unflatten(0, (-1, frames)) + fused).flatten(0, 1)
            outputs.append(h)
        return outputs, forward_timestep_embed(self.middle_block, h, emb, context, **temporal)
