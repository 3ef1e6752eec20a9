"""What the speed benchmarks share: single sampling steps through ComfyUI, measured in turn, and a line that compares them.

Time is process CPU time, so other work on the machine disturbs it little; with one thread it is the wall time of a free core.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from magdiff_core.host import session

session.start()

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.sampler_helpers import convert_cond, prepare_model_patcher  # noqa: E402
from torch import Tensor  # noqa: E402

from magdiff_core.host.names import RUN_CACHE  # noqa: E402
from magdiff_core.host.run_cache import RunCache  # noqa: E402

SIGMA = 5.0


def random_weights(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.normal_(0.0, 0.02)


def base_model(family: type, unet: dict, weights: dict[str, Tensor] | None = None) -> comfy.model_patcher.ModelPatcher:
    """A patcher around an fp32 UNet of this shape, a family of `comfy.supported_models` and its arguments.

    `weights`: LDM names without prefix, shared and not copied; random ones by default.
    """
    config = family({**unet, "dtype": torch.float32})
    config.manual_cast_dtype = None
    config.custom_operations = comfy.ops.manual_cast
    device = "cpu" if weights is None else "meta"
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=device)
    if weights is None:
        random_weights(model.diffusion_model)
    else:
        model.diffusion_model.load_state_dict(weights, assign=True)
        model.diffusion_model.requires_grad_(False)
    batch_always(model)
    return comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def batch_always(model: comfy.model_base.BaseModel) -> None:
    """Have cond and uncond run in one batch, whatever memory is free."""
    model.memory_usage_factor = 0.0


class Stepper:
    """Runs one step of a model on cond and uncond together, as ComfyUI's sampler does, and tells its CPU seconds."""

    def __init__(self, model: comfy.model_patcher.ModelPatcher, positive: list, negative: list, noise: Tensor):
        self.model, self.noise = model, noise
        self.options = comfy.model_patcher.create_model_options_clone(model.model_options)
        conds = {"positive": convert_cond(positive), "negative": convert_cond(negative)}
        prepare_model_patcher(model, conds, self.options)
        self.options["transformer_options"][RUN_CACHE] = RunCache()
        model.pre_run()
        self.conds = comfy.samplers.process_conds(model.model, noise, conds, noise.device)

    def step(self) -> float:
        self.model.pre_run()
        sigma = torch.full((self.noise.shape[0],), SIGMA)
        start = time.process_time()
        comfy.samplers.calc_cond_batch(
            self.model.model, [self.conds["negative"], self.conds["positive"]], self.noise * SIGMA, sigma, self.options
        )
        return time.process_time() - start


def interleave(steps: Sequence[Callable[[], float]], rounds: int) -> list[tuple[float, ...]]:
    """CPU seconds of every step, round by round, each beginning with another one.

    Each is run once before, unmeasured: what a sampling run computes once happens there, as it does for users.
    """
    for step in steps:
        step()
    measured = []
    for number in range(rounds):
        seconds = [0.0] * len(steps)
        for place in range(len(steps)):
            which = (number + place) % len(steps)
            seconds[which] = steps[which]()
        measured.append(tuple(seconds))
    return measured


def ratios(base: Sequence[float], with_it: Sequence[float]) -> list[float]:
    """Cost of one over the other, pair by pair."""
    return [more / less for less, more in zip(base, with_it, strict=True)]


def line(case: str, threads: int, base: tuple[str, Sequence[float]], with_it: tuple[str, Sequence[float]], **facts: object) -> str:
    """`ratio 1.23 case=... threads=1 range=1.20..1.27 <base>_s=... <with_it>_s=...`: medians over pairs."""
    each = ratios(base[1], with_it[1])
    words = [f"ratio {statistics.median(each):.2f} case={case} threads={threads} range={min(each):.2f}..{max(each):.2f}"]
    words += [f"{name}_s={statistics.median(seconds):.2f}" for name, seconds in (base, with_it)]
    return " ".join([*words, *(f"{name}={value}" for name, value in facts.items())])


def peak_mib() -> int:
    """Largest resident memory of this process so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def case_options(description: str, pairs: str) -> argparse.ArgumentParser:
    """A parser with `--latent`, `--frames`, `--pairs` (whose help is `pairs`) and `--threads`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--latent", type=int, nargs="+", default=[16, 32], help="sides of the square latents")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5, help=pairs)
    parser.add_argument("--threads", type=int, default=1)
    return parser
