"""AnimateDiff and AnimateLCM motion modules: recognised, converted, refused with the reason, and equal to their peers.

The peer is diffusers. AnimateDiff's own code takes some norms over other axes; files in its layout are compared with diffusers'
model whose norms are turned to those axes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers_models import (
    FRAMES,
    HEADS_SD15,
    as_animatediff_runs,
    motion_adapter,
    original_motion_keys,
    random_latent,
    random_text,
    randomise,
    sd15_unet,
)

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.weights.animatediff import LCM, V1, V2, V3, is_animatediff, read_animatediff
from magdiff_core.weights.families import families_of
from magdiff_core.weights.foreign import describe

FULL_WIDTHS = (320, 640, 1280, 1280)
VERSIONS = {V1: {"mid": False, "positions": 24}, V2: {"mid": True, "positions": 32}, V3: {"mid": False, "positions": 32}}
PARAMETERS = {V1: 417_137_600, V2: 453_209_280, V3: 417_137_600}


def own_layout(adapter) -> dict[str, torch.Tensor]:
    return original_motion_keys(adapter.state_dict())


def without_positions(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith(".pe")}


# --- full-size key lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_full_size_is_converted_without_a_rest(version, own, prefix):
    with torch.device("meta"):
        peer = motion_adapter(FULL_WIDTHS, **VERSIONS[version])
    weights = own_layout(peer) if own else peer.state_dict()
    weights = {prefix + key: value for key, value in weights.items()}
    assert [family.name for family in families_of(weights)] == ["AnimateDiff"]
    parts = read_animatediff(weights)
    assert parts.layout == version and not parts.unet and not parts.unused
    assert sum(value.numel() for value in parts.adapter.values()) == PARAMETERS[version]
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in parts.adapter.items()}
    sites = [site for _, site in adapter.temporal.after_sites()]
    assert len(sites) == 20 + VERSIONS[version]["mid"]
    assert {"input_blocks.1.1", "input_blocks.10.0", "output_blocks.0.0", "output_blocks.11.1"} <= set(sites)
    assert parts.config.clip_norm == (own and version == V1)
    assert parts.config.max_frames == VERSIONS[version]["positions"] and parts.config.schedule.beta == "linear"


def test_animatelcm_has_no_position_tables():
    with torch.device("meta"):
        weights = without_positions(own_layout(motion_adapter(FULL_WIDTHS, mid=False)))
    parts = read_animatediff(weights)
    assert parts.layout == LCM and parts.config.max_frames == 64


# --- parity -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spatial():
    return randomise(sd15_unet(), seed=1)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("version", "frames"), [*((version, FRAMES) for version in VERSIONS), (V2, 1)])
def test_parity(comfy_session, spatial, version, frames, own):
    import diffusers_models
    from diffusers import UNetMotionModel
    from peer_run import TIMESTEP, base_model, check, conditioning, ldm_names, predict, with_adapter

    motion = randomise(motion_adapter(**VERSIONS[version]), seed=2)
    peer = UNetMotionModel.from_unet2d(copy.deepcopy(spatial), motion).eval()
    if own:
        peer = as_animatediff_runs(peer, clip_norm=version == V1, frames=frames)
    parts = read_animatediff(own_layout(motion) if own else motion.state_dict())
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    texts = random_text(11), random_text(12)
    rows = predict(model, random_latent(frames=frames), *map(conditioning, texts))
    for row, text in zip(rows, texts, strict=True):
        check(row, diffusers_models.predict(peer, random_latent(frames=frames), TIMESTEP, text))


@pytest.mark.parametrize("own", [False, True])
def test_parity_of_animatelcm(comfy_session, spatial, own):
    """Its own file has no position tables; the frames are numbered all the same. The norms are those of v3."""
    import diffusers_models
    from diffusers import UNetMotionModel
    from peer_run import TIMESTEP, base_model, check, conditioning, difference, ldm_names, predict, with_adapter

    motion = randomise(motion_adapter(mid=False, positions=64), seed=2)
    peer = UNetMotionModel.from_unet2d(copy.deepcopy(spatial), motion).eval()
    weights = motion.state_dict()
    if own:
        peer = as_animatediff_runs(peer, clip_norm=False, frames=FRAMES)
        weights = without_positions(own_layout(motion))
    parts = read_animatediff(weights)
    assert parts.layout == LCM and parts.config.schedule.beta == "linear"
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    texts = random_text(11), random_text(12)
    rows = predict(model, random_latent(), *map(conditioning, texts))
    for row, text in zip(rows, texts, strict=True):
        check(row, diffusers_models.predict(peer, random_latent(), TIMESTEP, text))
    backwards = predict(model, random_latent().flip(0), *map(conditioning, texts))[0].flip(0)
    assert difference(backwards, rows[0]) > 1e-2, "without positions the order of the frames would not matter"


def test_the_two_layouts_are_run_differently(comfy_session, spatial):
    """So that parity of both cannot pass with one rule."""
    from peer_run import base_model, conditioning, difference, ldm_names, predict, with_adapter

    motion = randomise(motion_adapter(), seed=2)
    base = base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15)
    texts = [conditioning(random_text(seed)) for seed in (11, 12)]
    results = []
    for weights in (own_layout(motion), motion.state_dict()):
        parts = read_animatediff(weights)
        results.append(predict(with_adapter(base, parts.adapter, parts.config), random_latent(), *texts)[0])
    assert difference(*results) > 1e-2


# --- as an adapter ----------------------------------------------------------------------------------------------------------


def test_noise_schedule_comes_with_the_motion_and_goes_with_it(comfy_session, spatial):
    """AnimateDiff trained with betas in a line, which core calls sqrt_linear."""
    from peer_run import base_model, ldm_names, with_adapter

    from magdiff_core.host.call import PartStrengths

    parts = read_animatediff(own_layout(randomise(motion_adapter(mid=False), seed=2)))
    base = base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15)
    plain = base.get_model_object("model_sampling").sigmas
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    kept = torch.cumprod(1.0 - betas, 0)
    expected = ((1 - kept) / kept).sqrt().float()
    moved = with_adapter(base, parts.adapter, parts.config)
    torch.testing.assert_close(moved.get_model_object("model_sampling").sigmas, expected, rtol=1e-4, atol=1e-6)
    off = with_adapter(moved, parts.adapter, parts.config, PartStrengths(temporal=0.0))
    assert torch.equal(off.get_model_object("model_sampling").sigmas, plain)
    assert torch.equal(base.get_model_object("model_sampling").sigmas, plain)


def test_a_clip_longer_than_the_position_table(comfy_session, spatial):
    """Refused, unless context windows keep each call below it; core's causal fix puts one frame more into a window."""
    import tiny_run
    from peer_run import base_model, conditioning, ldm_names, predict, with_adapter

    parts = read_animatediff(own_layout(randomise(motion_adapter(mid=False), seed=2)))
    base = base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15)
    model = with_adapter(base, parts.adapter, parts.config, max_frames=4)
    texts = [conditioning(random_text(seed)) for seed in (11, 12)]
    with pytest.raises(ValueError, match="5 frames.*know 4.*Context Windows"):
        predict(model, random_latent(frames=5), *texts)
    with pytest.raises(ValueError, match="5 frames.*know 4"):
        tiny_run.run(tiny_run.windowed(model, length=4, anchor=True), *texts, frames=6, steps=1)
    for length, anchor in ((4, False), (3, True)):
        windowed = tiny_run.windowed(model, length=length, anchor=anchor)
        assert torch.isfinite(tiny_run.run(windowed, *texts, frames=6, steps=1)).all()


def test_another_base_is_refused(comfy_session, spatial):
    """SD2.1 has streams of the same width; its text is wider."""
    from peer_run import base_model, ldm_names, with_adapter

    parts = read_animatediff(own_layout(randomise(motion_adapter(mid=False), seed=2)))
    assert parts.config.text_width == 768
    base = base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15)
    with pytest.raises(ValueError, match="SD1.5 checkpoint, whose text is 768 wide; this MODEL reads 48"):
        with_adapter(base, parts.adapter, parts.config, text_width=768)


def test_file(comfy_session, tmp_path):
    """A pickle as AnimateDiff publishes them, under `state_dict` and with `module.` before the names."""
    from magdiff_core.host.adapter_file import load_adapter_file

    weights = {f"module.{key}": value for key, value in own_layout(randomise(motion_adapter())).items()}
    path = tmp_path / "any name.ckpt"
    torch.save({"epoch": 1, "global_step": 2, "state_dict": weights}, path)
    loaded = load_adapter_file(str(path))
    assert len(loaded.patcher.model.temporal.after_sites()) == 21 and loaded.config.trained_from == "AnimateDiff v2 motion module"


def test_it_is_no_checkpoint(comfy_session, tmp_path):
    from safetensors.torch import save_file

    from magdiff_core.host.load_checkpoint import load_checkpoint

    path = tmp_path / "mm_sd_v15_v2.safetensors"
    save_file({key: value.contiguous() for key, value in without_positions(own_layout(motion_adapter())).items()}, path)
    with pytest.raises(ValueError, match="AnimateDiff v2.*adds to a base model.*Apply MagDiff Adapter"):
        load_checkpoint(str(path))


# --- refused ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    return own_layout(randomise(motion_adapter()))


def without(weights: dict, *starts: str) -> dict:
    return {key: value for key, value in weights.items() if not key.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "down_blocks.1.motion_modules.1.temporal_transformer.proj_out.bias"), ("1 of", "input_blocks.5.1")),
        (lambda w: without(w, "up_blocks.0"), ("78 of", "output_blocks.0.0")),
        (lambda w: without(w, "down_blocks.3", "up_blocks.3", "mid_block"), ("SDXL", "3 levels", "mm_sd_v15_v2")),
        (lambda w: without(w, "down_blocks.1", "down_blocks.2", "down_blocks.3"), ("1 levels", "a part of a file")),
        (lambda w: {**w, "something.else": torch.ones(1)}, ("1 of its", "something.else", "mixed")),
        (lambda w: {**w, "ip_adapter.1.to_k_ip.weight": torch.ones(1)}, ("1 of its", "ip_adapter")),
        (
            lambda w: {**w, "down_blocks.0.motion_modules.0.temporal_transformer.proj_mid.bias": torch.ones(1)},
            ("1 of its", "proj_mid"),
        ),
        (lambda w: {k: v * 0.9 if k.endswith(".pe") else v for k, v in w.items()}, ("position table", "differs by 0.1")),
    ],
)
def test_partial_and_mixed_files_are_refused(small, change, words):
    read_animatediff(small)
    with pytest.raises(ValueError) as error:
        read_animatediff(change(small))
    for word in words:
        assert word in str(error.value)


def test_a_whole_unet_beside_the_motion_is_named_as_unused(small):
    parts = read_animatediff({**small, "down_blocks.0.resnets.0.norm1.weight": torch.ones(32)})
    assert parts.unused == ("down_blocks.0.resnets.0.norm1.weight",)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight",
            "",
        ),
        ("controlnet_cond_embedding.weight", "ControlNet"),
    ],
)
def test_loras_and_sparsectrl_are_other_families(small, key, words):
    assert not is_animatediff([*small, key])
    assert words in describe([*small, key])
