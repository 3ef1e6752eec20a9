"""One sampling step of MagDiff over one of the plain base UNet, on the same batch, in one run.

    python -m benchmarks.step [--latent 16 32] [--frames 8] [--pairs 5] [--threads 1]

SD2.1 shape with random weights, cond and uncond in one batch, every part of the adapter on. Both run through ComfyUI's own
`calc_cond_batch`, alternating; a pair is one step of each. What a sampling run computes once (Resampler, image keys and
values, subject branch) happens in the first, unmeasured step, as it does for users. Time is process CPU time, so other work
on the machine disturbs it little; with one thread it is the wall time of a free core.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time

from magdiff_core.host import session

session.start()

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import BasicTransformerBlock  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock  # noqa: E402
from comfy.sampler_helpers import convert_cond, prepare_model_patcher  # noqa: E402

from magdiff_core.adapter import AdapterConfig, MagDiffAdapter  # noqa: E402
from magdiff_core.alignment.apa import AlphaSettings  # noqa: E402
from magdiff_core.host.adapter_file import adapter_patcher  # noqa: E402
from magdiff_core.host.attach import apply_adapter  # noqa: E402
from magdiff_core.host.call import PartStrengths  # noqa: E402
from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens, attach  # noqa: E402
from magdiff_core.host.names import RUN_CACHE  # noqa: E402
from magdiff_core.host.run_cache import RunCache  # noqa: E402

SD21_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "context_dim": 1024, "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
    "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
SIGMA = 5.0


def random_weights(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.normal_(0.0, 0.02)


def sd21() -> comfy.model_patcher.ModelPatcher:
    """A patcher around a UNet of SD2.1's shape with random fp32 weights."""
    config = comfy.supported_models.SD20(dict(SD21_UNET))
    config.unet_config["dtype"] = torch.float32
    config.manual_cast_dtype = None
    config.custom_operations = comfy.ops.manual_cast
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
    random_weights(model.diffusion_model)
    model.memory_usage_factor = 0.0  # cond and uncond in one batch, whatever memory is free
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def adapter_shapes(unet: torch.nn.Module) -> dict[str, torch.Size]:
    """Shapes of a whole adapter for `unet`, with the Resampler of the released code."""
    shapes = {"hfa.conv_z.weight": (unet.model_channels, 4, 3, 3)}
    for site, layer in unet.named_modules():
        if isinstance(layer, ResBlock):
            shapes[f"temporal.conv.{site}.layers.0.norm.weight"] = (layer.out_channels,)
        elif isinstance(layer, BasicTransformerBlock):
            width = layer.n_heads * layer.d_head
            shapes[f"temporal.attn.{site}.norm.weight"] = (width,)
            shapes[f"apa.{site}.to_k_image.weight"] = (width, 1024)
    for level in (1, 2):
        shapes[f"hfa.level.{level}.conv_in.weight"] = (64, 4, 3, 3)
    shapes |= {"projector.latents": (1, 16, 1024), "projector.proj_in.weight": (1024, 1280)}
    shapes |= {"projector.proj_out.weight": (1024, 1024), "projector.layers.0.1.1.weight": (4096, 1024)}
    shapes |= {f"projector.layers.{i}.0.to_q.weight": (768, 1024) for i in range(4)}
    return {key: torch.Size(shape) for key, shape in shapes.items()}


def conditionings(frames: int, latent: int, width: int) -> tuple[list, list]:
    text = [[[torch.randn(1, 77, 1024), {}]] for _ in range(2)]
    tokens = SubjectTokens({"last": torch.randn(1, 2, 257, width)}, black_entry=True)
    sizes = [int(latent * ratio + 0.5) for ratio in (1.0, 1.25, 1.5)]
    latents = SubjectLatents(tuple(torch.randn(1, 2, 4, n, n) for n in sizes), frames, GENERATE)
    return tuple(attach(c, tokens=tokens, latents=latents, alphas=AlphaSettings()) for c in text)


class Stepper:
    """Runs one step of a model on cond and uncond together, as ComfyUI's sampler does, and tells its CPU seconds."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher, positive: list, negative: list, noise: torch.Tensor):
        self.model, self.noise = model, noise
        self.options = comfy.model_patcher.create_model_options_clone(model.model_options)
        conds = {"positive": convert_cond(positive), "negative": convert_cond(negative)}
        prepare_model_patcher(model, conds, self.options)
        self.options["transformer_options"][RUN_CACHE] = RunCache()
        self.conds = comfy.samplers.process_conds(model.model, noise, conds, noise.device)

    def step(self) -> float:
        self.model.pre_run()
        sigma = torch.full((self.noise.shape[0],), SIGMA)
        start = time.process_time()
        comfy.samplers.calc_cond_batch(
            self.model.model, [self.conds["negative"], self.conds["positive"]], self.noise * SIGMA, sigma, self.options
        )
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latent", type=int, nargs="+", default=[16, 32], help="sides of the square latents")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of steps a case")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        base = sd21()
        config = AdapterConfig()
        whole = MagDiffAdapter(adapter_shapes(base.model.diffusion_model), config)
        random_weights(whole)
        loaded = adapter_patcher(whole.state_dict(), config)
        model = apply_adapter(base, loaded, PartStrengths())
        for latent in options.latent:
            noise = torch.randn(options.frames, 4, latent, latent)
            prompts = conditionings(options.frames, latent, config.image_encoder.width)
            plain, magdiff = Stepper(base, *prompts, noise), Stepper(model, *prompts, noise)
            plain.step(), magdiff.step()
            pairs = [(plain.step(), magdiff.step()) for _ in range(options.pairs)]
            ratios = sorted(ours / theirs for theirs, ours in pairs)
            print(
                f"ratio {statistics.median(ratios):.2f} case=magdiff_{latent}x{latent} threads={options.threads} "
                f"range={ratios[0]:.2f}..{ratios[-1]:.2f} plain_s={statistics.median(p for p, _ in pairs):.2f} "
                f"magdiff_s={statistics.median(m for _, m in pairs):.2f}",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak_mib {peak // (1 << 20 if sys.platform == 'darwin' else 1 << 10)}")


if __name__ == "__main__":
    main()
