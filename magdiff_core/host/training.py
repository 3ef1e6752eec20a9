"""What the trainer needs of ComfyUI: the encoders with gradients, and a call of the UNet through the very patches of inference."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import comfy.clip_model
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..adapter import AdapterConfig, MagDiffAdapter
from ..temporal.attention import two_products
from .adapter_file import adapter_patcher
from .attach import apply_adapter
from .call import PartStrengths
from .conds import LatentsOfArea, SubjectLatents, SubjectTokens
from .loaded_checkpoint import LoadedCheckpoint
from .names import COND_LATENTS, COND_TOKENS, RUN_CACHE
from .run_cache import RunCache


def _with_gradients(compute: Callable[[], Tensor]) -> Tensor:
    """ComfyUI's encoders add in place to tensors that the backward pass needs: keep copies of those."""
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        return compute()


def token_ids(loaded: LoadedCheckpoint, prompt: str) -> list[int]:
    """Ids of a prompt, padded, as CLIPTextEncode makes them."""
    (batch,) = loaded.clip.tokenize(prompt).values()
    return [token for token, _ in batch[0]]


def encode_text(loaded: LoadedCheckpoint, ids: Sequence[Sequence[int]]) -> Tensor:
    """`[B, L, D]` float32, what CLIPTextEncode gives for weights of 1."""
    (encoder,) = (child for child in loaded.clip.cond_stage_model.children())
    return _with_gradients(lambda: encoder([list(row) for row in ids])[0])


def encode_pictures(loaded: LoadedCheckpoint, pictures: Tensor) -> Tensor:
    """Last hidden states `[N, tokens, width]` of pictures `[N, H, W, 3]` in 0..1, as CLIPVisionEncode without crop."""
    vision = loaded.clip_vision
    pixels = comfy.clip_model.clip_preprocess(
        pictures, size=vision.image_size, mean=vision.image_mean, std=vision.image_std, crop=False
    )
    return _with_gradients(lambda: vision.model(pixel_values=pixels)[0])


class StepCache(RunCache):
    """What several layers of one training step share: the image tokens, for example, are made once for all of them.

    Nothing here is computed again by gradient checkpointing, which would find it in the cache the second time: so its
    tensors are kept apart from those that a checkpointed layer drops.
    """

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._values:
            with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor):
                self._values[key] = compute()
        return self._values[key]


SHORT = 512
"""Tokens up to which attention on a CPU is two plain products: the backward pass of torch's own took a quarter of a step there."""


def differentiable_attention(
    _chosen: Callable, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, **kwargs
) -> Tensor:
    """Attention with a backward pass, in place of the one that ComfyUI chose: not all have one."""
    short = query.device.type == "cpu" and query.ndim == 3 and max(query.shape[-2], key.shape[-2]) <= SHORT
    if short and mask is None:
        states = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
        return two_products(*states).transpose(1, 2).flatten(2)
    return attention_pytorch(query, key, value, heads, mask, **kwargs)


def checkpointed(handler: Callable) -> Callable:
    """The handler of a whole layer, which is run again in the backward pass instead of keeping what it computed."""

    def run(layer, x, emb, context, transformer_options, *rest):
        # Core writes into this dict while the UNet runs: the second run needs what the first one saw.
        seen, after = dict(transformer_options), {}

        def compute(x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
            options = dict(seen)
            out = handler(layer, x, emb, context, options, *rest)
            after.update(options)
            return out

        out = checkpoint(compute, x, emb, context, use_reentrant=False, preserve_rng_state=False)
        transformer_options.update(after)
        return out

    return run


class TrainingModel:
    """A base with an adapter attached as Apply MagDiff Adapter does it, both trainable.

    `checkpoint_layers`: ResBlocks and transformers are computed twice instead of keeping their activations.
    """

    def __init__(
        self,
        model: comfy.model_patcher.ModelPatcher,
        weights: dict[str, Tensor],
        config: AdapterConfig,
        checkpoint_layers: bool = False,
    ) -> None:
        loaded = adapter_patcher(weights, config)
        self.adapter: MagDiffAdapter = loaded.patcher.model.requires_grad_(True)
        self.base = model.model
        self.base.diffusion_model.requires_grad_(True)
        self.patcher = apply_adapter(model, loaded, PartStrengths())
        if checkpoint_layers:
            patches = self.patcher.model_options["transformer_options"]["patches"]
            name = "forward_timestep_embed_patch"
            patches[name] = [(kind, checkpointed(handler)) for kind, handler in patches[name]]

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        tokens: SubjectTokens | None = None,
        latents: SubjectLatents | None = None,
    ) -> Tensor:
        """The UNet's output (v or eps) for noisy latents.

        Args:
            x: `[B, F, C, h, w]`, already at the variance that the UNet expects.
            timestep: `[B]` whole numbers 0..999.
            context: `[B, L, D]` text, one row a clip.
            tokens, latents: with one row a clip, or None.
        """
        sigma = self.base.model_sampling.sigmas[timestep]
        scale = (sigma[:, None, None, None, None] ** 2 + 1).sqrt()
        return self.denoise(x * scale, sigma, context, tokens, latents)[1]

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        tokens: SubjectTokens | None = None,
        latents: SubjectLatents | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The clean latents that the model sees in `x = clean + sigma * noise` `[B, F, C, h, w]`, `sigma [B]`, and the UNet's own
        output for them (v or eps), both of that shape. Other arguments as in `predict`."""
        clips, frames = x.shape[:2]
        self.patcher.pre_run()
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)["transformer_options"]
        outputs = []

        def keep_output(executor, *args, **kwargs) -> Tensor:
            outputs.append(executor(*args, **kwargs))
            return outputs[-1]

        around_unet = {"magdiff_training": [keep_output], **self.patcher.wrappers.get(WrappersMP.DIFFUSION_MODEL, {})}
        wide = sigma.repeat_interleave(frames)
        options.update(
            wrappers={**self.patcher.wrappers, WrappersMP.DIFFUSION_MODEL: around_unet}, cond_or_uncond=[0] * clips, sigmas=wide
        )
        options[RUN_CACHE] = StepCache()
        options.setdefault("optimized_attention_override", differentiable_attention)
        conds = {}
        if tokens is not None:
            conds[COND_TOKENS] = tokens
        if latents is not None:
            conds[COND_LATENTS] = LatentsOfArea(latents, None)
        clean = self.base.apply_model(
            x.flatten(0, 1), wide, None, context.repeat_interleave(frames, 0), None, options, **conds
        )
        (output,) = outputs
        return clean.unflatten(0, (clips, frames)), output.unflatten(0, (clips, frames))

    def target(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the UNet should put out for `clean + sigma * noise`: eps, v, or whatever the base's `model_sampling` makes of it.

        All tensors as in `denoise`.
        """
        frames = clean.shape[1]
        wide = sigma.repeat_interleave(frames)
        x = (clean + sigma[:, None, None, None, None] * noise).flatten(0, 1)
        # Every prediction is a straight line from the UNet's output to the clean latents.
        sampling = self.base.model_sampling
        at_zero = sampling.calculate_denoised(wide, torch.zeros_like(x), x)
        slope = sampling.calculate_denoised(wide, torch.ones_like(x), x) - at_zero
        return ((clean.flatten(0, 1) - at_zero) / slope).unflatten(0, clean.shape[:2])

    def ddim_sigmas(self, steps: int) -> Tensor:
        """`[steps + 1]`, falling to 0: those of KSampler with the scheduler ddim_uniform."""
        return comfy.samplers.calculate_sigmas(self.base.model_sampling, "ddim_uniform", steps)

    def pure_noise(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """What sampling starts from at `sigma`, the first of `ddim_sigmas`."""
        sampling = self.base.model_sampling
        strongest = torch.isclose(sampling.sigma_max.to(sigma), sigma, rtol=1e-5) | (sigma > sampling.sigma_max)
        return sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), bool(strongest))

    def signal_and_noise(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of clean latent and noise in the input at each timestep, `[B]` each; their squares sum to 1."""
        sigma = self.base.model_sampling.sigmas[timestep]
        return 1 / (sigma**2 + 1).sqrt(), sigma / (sigma**2 + 1).sqrt()
