"""PIA: AnimateDiff's motion modules for SD1.5 and a first convolution that also sees a picture.

The convolution takes 9 channels: the noisy latent (4), how near each frame is to the picture (1), the picture's latent in every
frame (4). As in PIA's own code the base keeps its weights for the first four, and its bias; the five others become `hfa.conv_z`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..config import ALL_FRAMES
from .animatediff import is_motion_part, motion_config, read_motion_modules
from .checkpoint import Family, ReadCheckpoint

PIA = "PIA"
LATENT_CHANNELS = 4
CHANNELS = 9
AFFINITY = (1.0, 0.9, 0.85, 0.85, 0.85, 0.8)
"""How near the first frames are to the picture, and all later ones as the last of these: PIA's values for small motion."""
_CONV_IN = ("conv_in.weight", "conv_in.bias")


def is_pia(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds motion modules and a first convolution."""
    keys = set(keys)
    return is_motion_part(keys) and any(key.removeprefix("module.") == _CONV_IN[0] for key in keys)


def read_pia(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """The motion modules and the subject branch as an adapter for SD1.5. Meta tensors work.

    Raises ValueError when the first convolution is not PIA's, and as `read_motion_modules`.
    """
    weights = {key.removeprefix("module."): value for key, value in state_dict.items()}
    conv_in = weights[_CONV_IN[0]]
    motion = read_motion_modules(weights, others=_CONV_IN)
    if conv_in.shape[1] == LATENT_CHANNELS:
        # The checkpoint of a trainer, which saved the base as well.
        unused = (*motion.unused, *(key for key in _CONV_IN if key in weights))
        return ReadCheckpoint(layout=motion.version, unet={}, adapter=motion.adapter, config=motion_config(motion), unused=unused)
    if conv_in.shape[1] != CHANNELS:
        raise ValueError(
            f"this looks like PIA, but its first convolution takes {conv_in.shape[1]} channels, not {CHANNELS}: it is mixed from "
            "two models. Use pia.ckpt as it was published"
        )
    config = motion_config(
        motion,
        clip_norm=motion.own_layout,
        subject_frames=ALL_FRAMES,
        affinity=AFFINITY,
        licence="check the model card",
        trained_from="PIA",
    )
    adapter = {**motion.adapter, "hfa.conv_z.weight": conv_in[:, LATENT_CHANNELS:].contiguous()}
    unused = (*motion.unused, f"{_CONV_IN[0]}[:, :{LATENT_CHANNELS}]", *(key for key in _CONV_IN[1:] if key in weights))
    return ReadCheckpoint(layout=PIA, unet={}, adapter=adapter, config=config, unused=unused)


FAMILY_PIA = Family(PIA, is_pia, read_pia)
