"""What a file of another kind is, in words: so that an error can say what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS = (
    # (what some key must match, what the file is, what to do with it)
    (r".*(?:lora_up|lora_down|lora_A|lora_B|lora\.up|lora\.down).*", "a LoRA", "load it with Load LoRA"),
    (r"(?:control_model\.|.*input_hint_block|.*controlnet_cond_embedding).*", "a ControlNet", "load it with Load ControlNet Model"),
    (r".*motion_modules\..*", "a part of an AnimateDiff motion module", "use the file as it was published"),
    (r"(?:ip_adapter|image_proj)\..*", "a part of an IP-Adapter", "use the file as it was published"),
    (
        r".*(?:temopral_conv|framestride_embed|fps_embedding).*",
        "a part of a VideoCrafter or DynamiCrafter model",
        "use model.ckpt as it was published",
    ),
    (r".*(?:temp_attentions|transformer_in)\..*", "a part of a ModelScope or zeroscope model", "use the file as it was published"),
    (r".*time_stack\..*", "a Stable Video Diffusion model", "load it with Image Only Checkpoint Loader"),
    (r"model\.diffusion_model\..*", "a whole checkpoint", "load it with a checkpoint loader"),
    (r"(?:down_blocks|mid_block|up_blocks)\..*|unet\..*", "a diffusers UNet", "load it with Load Diffusion Model"),
    (r"(?:vision_model|visual)\..*", "an image encoder", "load it with Load CLIP Vision"),
    (r"(?:text_model|text_encoder)\..*", "a text encoder", "load it with Load CLIP"),
    (r"(?:first_stage_model\.)?(?:encoder|decoder)\..*", "an autoencoder", "load it with Load VAE"),
)


def describe(keys: Iterable[str]) -> str:
    """One clause about a file with these keys, for the end of an error message."""
    keys = list(keys)
    for pattern, kind, advice in _KINDS:
        if any(re.fullmatch(pattern, key) for key in keys):
            return f"it looks like {kind} ({len(keys)} tensors): {advice}"
    shown = ", ".join(keys[:3]) or "nothing"
    return f"it holds {len(keys)} tensors of no kind that is known here ({shown}): use a file that the help page of the node names"
