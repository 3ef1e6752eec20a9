"""ReVideo's control branch (paper section 3.3): condition encoders, SAFM, trunk and zero convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from ..motion.encoders import CONTENT_CHANNELS, MOTION_CHANNELS, ConditionEncoder
from ..motion.safm import SpatiotemporalAdaptiveFusion
from ..weights.revideo import encoder_widths, trunk_weights
from .operations import HostOperations
from .revideo_trunk import HEAD_CHANNELS, ControlTrunk, trunk_config


class ReVideoControlModel(nn.Module):
    """`content_encoder` is E_c, `motion_encoder` E_m, `safm` H and the fusion."""

    def __init__(self, config: dict, widths: tuple[int, ...], operations=HostOperations):
        super().__init__()
        self.trunk = ControlTrunk(config, operations)
        channels = self.trunk.model_channels
        options = {"widths": widths, "operations": operations, "device": "meta"}
        self.content_encoder = ConditionEncoder(CONTENT_CHANNELS, channels, **options)
        self.motion_encoder = ConditionEncoder(MOTION_CHANNELS, channels, **options)
        self.safm = SpatiotemporalAdaptiveFusion(channels, **options)
        block_channels = _block_channels(config)
        self.zero_convs = nn.ModuleList(operations.Conv2d(width, width, 1, device="meta") for width in block_channels)
        self.zero_conv_middle = operations.Conv2d(block_channels[-1], block_channels[-1], 1, device="meta")

    @property
    def block_channels(self) -> list[int]:
        """Channels of what is added to each skip connection of the base, first block first."""
        return [conv.out_channels for conv in self.zero_convs]

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None, fused: Tensor, frames: int, options: dict
    ) -> dict[str, list[Tensor]]:
        """What is added to the base's skip connections ("output", first block first) and after its middle ("middle").

        Arguments as in `ControlTrunk.forward`.
        """
        outputs, middle = self.trunk(x, t, context, y, fused, frames, options)
        return {
            "output": [conv(h) for conv, h in zip(self.zero_convs, outputs, strict=True)],
            "middle": [self.zero_conv_middle(middle)],
        }


def _block_channels(config: dict) -> list[int]:
    width = config["model_channels"]
    channels = [width]
    for level, (mult, count) in enumerate(zip(config["channel_mult"], config["num_res_blocks"], strict=True)):
        channels += [width * mult] * count
        if level < len(config["channel_mult"]) - 1:
            channels.append(width * mult)
    return channels


def build_control(weights: dict[str, Tensor], head_channels: int = HEAD_CHANNELS) -> ReVideoControlModel:
    """The control branch with these weights (our names; see `weights.revideo.read_control`).

    Raises ValueError, with counts and a name, when the weights do not fill it.
    """
    model = ReVideoControlModel(trunk_config(trunk_weights(weights), head_channels), encoder_widths(weights))
    try:
        # assign: the placeholders are dropped, and host layers that start without a weight get one.
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"damaged ReVideo control branch: its weights do not fit together ({error})") from error
    # Host layers that start without a weight take one of any shape.
    wrong = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and not _fits(layer)]
    if missing or unexpected or wrong:
        raise ValueError(
            f"damaged ReVideo control branch: {len(missing)} weights are missing {missing[:3]}, {len(unexpected)} have no place "
            f"{unexpected[:3]}, {len(wrong)} layers have a wrong shape {wrong[:3]}"
        )
    return model.requires_grad_(False).eval()


def _fits(layer: nn.Linear) -> bool:
    return tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
