"""One sampling step of MagDiff over one of the plain base UNet, on the same batch, in one run.

    python -m benchmarks.step [--latent 16 32] [--frames 8] [--pairs 5] [--threads 1]

SD2.1 shape with random weights, cond and uncond in one batch, every part of the adapter on. Both run through ComfyUI's own
`calc_cond_batch`, alternating; a pair is one step of each. What a sampling run computes once (Resampler, image keys and
values, subject branch) happens in the first, unmeasured step, as it does for users. Time is process CPU time, so other work
on the machine disturbs it little; with one thread it is the wall time of a free core.
"""

from __future__ import annotations

import torch

from benchmarks.pairs import Stepper, base_model, case_options, interleave, line, peak_mib, random_weights

# `benchmarks.pairs` has made ComfyUI's modules importable.
import comfy.model_patcher  # isort: skip
import comfy.supported_models  # isort: skip

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.alignment.apa import AlphaSettings
from magdiff_core.host.adapter_file import adapter_patcher
from magdiff_core.host.attach import apply_adapter
from magdiff_core.host.call import PartStrengths
from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens, attach
from magdiff_core.train.new_adapter import adapter_config, adapter_shapes

SD21_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": 1024, "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
    "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
IMAGE_WIDTH = 1280
PROJECTOR_HEADS = 16
LATENT_SCALE = 0.18215


def conditionings(frames: int, latent: int, width: int) -> tuple[list, list]:
    text = [[[torch.randn(1, 77, width), {}]] for _ in range(2)]
    tokens = SubjectTokens({"last": torch.randn(1, 2, 257, IMAGE_WIDTH)}, black_entry=True)
    sizes = [int(latent * ratio + 0.5) for ratio in (1.0, 1.25, 1.5)]
    latents = SubjectLatents(tuple(torch.randn(1, 2, 4, n, n) for n in sizes), frames, GENERATE)
    return tuple(attach(c, tokens=tokens, latents=latents, alphas=AlphaSettings()) for c in text)


def with_adapter(base: comfy.model_patcher.ModelPatcher, token_width: int) -> comfy.model_patcher.ModelPatcher:
    """`base` with a whole adapter of random weights, as the trainer would make it."""
    config = adapter_config(IMAGE_WIDTH, PROJECTOR_HEADS, LATENT_SCALE, prediction="eps")
    whole = MagDiffAdapter(adapter_shapes(base.model.diffusion_model.state_dict(), IMAGE_WIDTH, token_width), config)
    random_weights(whole)
    return apply_adapter(base, adapter_patcher(whole.state_dict(), config), PartStrengths())


def measure(unet: dict, latents: list[int], frames: int, pairs: int, threads: int) -> None:
    """Print one line for each side of the square latents."""
    width = unet["context_dim"]
    base = base_model(comfy.supported_models.SD20, unet)
    model = with_adapter(base, width)
    for latent in latents:
        noise = torch.randn(frames, 4, latent, latent)
        prompts = conditionings(frames, latent, width)
        steppers = [Stepper(base, *prompts, noise), Stepper(model, *prompts, noise)]
        plain, magdiff = zip(*interleave([stepper.step for stepper in steppers], pairs), strict=True)
        print(line(f"magdiff_{latent}x{latent}", threads, ("plain", plain), ("magdiff", magdiff)), flush=True)


def main() -> None:
    parser = case_options(__doc__.splitlines()[0], "measured pairs of steps a case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        measure(SD21_UNET, options.latent, options.frames, options.pairs, options.threads)
    print(f"peak_mib {peak_mib()}")


if __name__ == "__main__":
    main()
