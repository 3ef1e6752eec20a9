"""Runs of the tiny model through ComfyUI's own sampler, and the payloads that ride on its conditioning."""

from __future__ import annotations

from contextlib import contextmanager

import comfy.sample
import comfy.samplers
import torch
from tiny import CONTEXT, IMAGE_WIDTH, adapter_weights, tiny_model

from magdiff_core.adapter import AdapterConfig, ImageEncoderConfig
from magdiff_core.alignment.apa import AlphaSettings
from magdiff_core.host.adapter_file import adapter_patcher
from magdiff_core.host.attach import apply_adapter
from magdiff_core.host.call import PartStrengths
from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens, attach

__all__ = ["AlphaSettings", "PartStrengths", "apply_adapter", "attach", "tiny_model", "adapter_weights"]

FRAMES = 4
SIDE = 8
BATCHING = 1e-5
"""Largest difference, over the largest value, between two ways to batch the same work."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def config(**changes) -> AdapterConfig:
    return AdapterConfig(projector_heads=2, image_encoder=ImageEncoderConfig(width=IMAGE_WIDTH), **changes)


def adapter(model, weights=None, **changes):
    """A loaded random adapter for `model`; `changes` to its configuration."""
    return adapter_patcher(adapter_weights(model) if weights is None else weights, config(**changes))


def adapted(model, temporal=1.0, image_stream=1.0, pyramid=1.0, base=1.0):
    return apply_adapter(model, adapter(model), PartStrengths(temporal, image_stream, pyramid, base))


def text(seed: int, length: int = 77) -> list:
    return [[random(1, length, CONTEXT, seed=seed), {}]]


def prompts() -> tuple[list, list]:
    return text(31), text(32)


def tokens(entries: int = 1, seed: int = 41, black: bool = True, width: int = IMAGE_WIDTH) -> SubjectTokens:
    return SubjectTokens({"last": random(1, entries + black, 9, width, seed=seed)}, black)


def latents(frames: int = FRAMES, mode: str = GENERATE, seed: int = 51, side: int = SIDE) -> SubjectLatents:
    entries = frames if mode != GENERATE else min(frames, 2)
    sides = (side, side * 5 // 4, side * 3 // 2)
    levels = tuple(random(1, entries, 4, n, n, seed=seed + i) for i, n in enumerate(sides))
    return SubjectLatents(levels, frames, mode)


def subject(frames: int = FRAMES, mode: str = GENERATE, seed: int = 0, alphas: AlphaSettings | None = None) -> dict:
    """Everything that the conditioning nodes attach, as keyword arguments of `attach`."""
    entries = 1 if mode == GENERATE else frames
    return {
        "tokens": tokens(entries, 41 + seed),
        "alphas": alphas or AlphaSettings(),
        "latents": latents(frames, mode, 51 + seed),
    }


def wired(**payloads) -> tuple[list, list]:
    """Positive and negative with the same payloads, by default a whole subject."""
    payloads = payloads or subject()
    return tuple(attach(conditioning, **payloads) for conditioning in prompts())


def run(model, positive, negative, frames=FRAMES, side=SIDE, steps=2, cfg=7.5, seed=1, sampler="ddim", **options) -> torch.Tensor:
    """The latent that ComfyUI's sampler makes, from noise that depends on `seed` alone."""
    noise = options.pop("noise", None)
    if noise is None:
        noise = random(frames, 4, side, side, seed=seed)
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "ddim_uniform", positive, negative, empty, seed=seed, disable_pbar=True, **options
    )


def windowed(model, length=8, overlap=0, schedule="standard_static", fuse="flat", anchor=False, retain="", stride=1):
    """`model` in core's context windows; `anchor` is core's causal fix."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    return ContextWindowsManualNode.execute(
        model, length, overlap, schedule, stride, False, fuse, 0, False, cond_retain_index_list=retain, causal_window_fix=anchor
    ).args[0]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@contextmanager
def calls_of(*modules: torch.nn.Module):
    """Counts how often each module runs inside the block: a list in the order of `modules`."""
    counts = [0] * len(modules)

    def counter(index):
        def count(*_):
            counts[index] += 1

        return count

    handles = [module.register_forward_pre_hook(counter(i)) for i, module in enumerate(modules)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unet_calls(model):
    """`cond_or_uncond` and batch size of each call of the UNet inside the block."""
    seen = []
    unet = model.model.diffusion_model

    def note(_module, args, kwargs):
        options = kwargs.get("transformer_options") or args[5]
        seen.append((list(options["cond_or_uncond"]), args[0].shape[0]))

    handle = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
