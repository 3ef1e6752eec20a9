"""Layers of published files under ComfyUI's memory management: partly loaded, unloaded, in half precision, in context windows,
off, and freed. What is computed is checked beside their readers; here every way to run must give the same."""

from __future__ import annotations

import gc
import weakref

import lvdm_files
import pytest
import released
import torch
from diffusers_models import HEADS_SD15, motion_adapter, original_motion_keys, randomise, sd15_unet

FRAMES = 4
KINDS = ("AnimateDiff", "PIA", "IP-Adapter", "DynamiCrafter")
OFF = (0.0, 0.0, 0.0, 0.0)


class Published:
    """A small published file on its base, and conditioning for it."""

    def __init__(self, kind: str) -> None:
        import peer_run
        import test_ip_adapter as ip

        from magdiff_core.weights.families import read_checkpoint

        self.extra: dict = {"text_width": 0}
        self.tokens = None
        self.pictures = kind in ("PIA", "DynamiCrafter")
        if kind == "DynamiCrafter":
            # a v model with zero terminal signal: with a schedule of its own
            self.read = read_checkpoint(lvdm_files.checkpoint(alpha=False))
            self.base = peer_run.base_model(self.read.unet, head_width=16)
            self.extra |= {"temporal_head_width": 16, "prediction": "eps"}
            self.context, self.tokens = 32, ("last", 5, released.projector_weights()["proj_in.weight"].shape[1])
        else:
            spatial = randomise(sd15_unet(), seed=1)
            self.base = peer_run.base_model(peer_run.ldm_names(spatial.state_dict()), heads=HEADS_SD15)
            self.context = ip.CONTEXT
            if kind == "IP-Adapter":
                self.read, self.tokens = read_checkpoint(ip.small(ip.PLAIN)), ("pooled", 1, ip.SMALL.pooled)
            else:
                motion = randomise(motion_adapter(conv_in=9 if kind == "PIA" else None), seed=2)
                self.read = read_checkpoint(original_motion_keys(motion.state_dict()))

    def model(self, dtype: torch.dtype = torch.float32, strengths=(1.0, 1.0, 1.0, 1.0), rounded: bool = False):
        import peer_run
        import tiny_run

        weights = {key: (value.half() if rounded else value).to(dtype) for key, value in self.read.adapter.items()}
        return peer_run.with_adapter(self.base, weights, self.read.config, tiny_run.PartStrengths(*strengths), **self.extra)

    def run(self, model, frames: int = FRAMES, steps: int = 2) -> torch.Tensor:
        import tiny_run

        from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens

        payloads = {}
        if self.tokens:
            layer, length, width = self.tokens
            payloads["tokens"] = SubjectTokens({layer: tiny_run.random(1, 2, length, width, seed=3)}, False, True)
        if self.pictures:
            payloads["latents"] = SubjectLatents((tiny_run.random(1, 1, 4, 8, 8, seed=4),), frames, GENERATE)
        texts = (tiny_run.random(1, 77, self.context, seed=seed) for seed in (1, 2))
        conds = [tiny_run.attach([[text, {}]], negative=n, **payloads) for text, n in zip(texts, (False, True))]
        return tiny_run.run(model, *conds, frames=frames, steps=steps)


@pytest.fixture(scope="module", params=KINDS)
def published(request, comfy_session) -> Published:
    return Published(request.param)


@pytest.fixture(scope="module")
def expected(published) -> torch.Tensor:
    return published.run(published.model())


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_partial_load_gives_the_same_latent(published, expected, little_memory, share):
    import comfy.model_management

    comfy.model_management.unload_all_models()
    offloaded = little_memory(share)
    assert torch.equal(published.run(published.model()), expected)
    assert ("MagDiffAdapter", True) in {(name, low) for name, low, _ in offloaded}
    comfy.model_management.unload_all_models()


def test_the_same_latent_after_everything_was_unloaded(published, expected):
    import comfy.model_management

    model = published.model()
    for _ in range(2):
        comfy.model_management.unload_all_models()
        assert torch.equal(published.run(model), expected)


def test_half_precision_is_cast_at_use(published):
    """The weights stay as the file has them, and give what the same numbers give in single precision."""
    import tiny_run

    half = published.model(torch.float16)
    weights = half.get_additional_models_with_key("magdiff")[0].model.state_dict().values()
    assert {weight.dtype for weight in weights} == {torch.float16}
    rounded = published.model(torch.float32, rounded=True)
    assert tiny_run.difference(published.run(half), published.run(rounded)) < tiny_run.BATCHING


def test_off_is_the_plain_model_bit_for_bit_and_the_base_stays_plain(published, expected):
    plain = published.run(published.base)
    assert not torch.equal(plain, expected)
    assert torch.equal(published.run(published.model(strengths=OFF)), plain)
    assert torch.equal(published.run(published.base), plain)


def test_context_windows(published):
    import tiny_run

    whole = published.run(published.model(), frames=8, steps=1)
    windows = published.run(tiny_run.windowed(published.model(), length=4, overlap=2), frames=8, steps=1)
    assert torch.isfinite(windows).all() and windows.shape == whole.shape
    in_one = published.run(tiny_run.windowed(published.model(), length=8), frames=8, steps=1)
    assert tiny_run.difference(in_one, whole) < tiny_run.BATCHING


def test_it_is_freed_with_its_last_reference(published):
    import comfy.model_management

    model = published.model()
    published.run(model, steps=1)
    reference = weakref.ref(model.get_additional_models_with_key("magdiff")[0].model)
    comfy.model_management.unload_all_models()
    del model
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    assert reference() is None
