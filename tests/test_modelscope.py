"""ModelScope and zeroscope: recognised, converted without a rest, refused with the reason, and equal to diffusers' UNet3D."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers_models import (
    CONTEXT,
    HEAD_WIDTH_SD21,
    modelscope_unet,
    original_modelscope_keys,
    random_latent,
    random_text,
    randomise,
)

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.weights.families import families_of
from magdiff_core.weights.modelscope import MODELSCOPE, is_modelscope, read_modelscope

FULL_WIDTHS = (320, 640, 1280, 1280)


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Every tensor of the published file, without values."""
    lines = (Path(__file__).parent / "fixtures" / "modelscope_keys.txt").read_text().splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return {key: torch.empty(tuple(map(int, shape.split("x"))), device="meta") for key, shape in rows}


@pytest.fixture(scope="module")
def full_diffusers() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return modelscope_unet(FULL_WIDTHS, 1024, 64).state_dict()


@pytest.fixture(scope="module")
def peer():
    return randomise(modelscope_unet())


@pytest.fixture(scope="module")
def layouts(peer) -> dict[str, dict[str, torch.Tensor]]:
    weights = peer.state_dict()
    return {"published": original_modelscope_keys(weights), "diffusers": weights}


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def numbers(weights: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in weights.values())


# --- full-size key lists ----------------------------------------------------------------------------------------------------


def test_the_two_full_size_layouts_name_the_same_model(published, full_diffusers):
    assert shapes(original_modelscope_keys(full_diffusers)) == shapes(published)


@pytest.mark.parametrize("layout", ["published", "diffusers"])
def test_full_size_is_converted_without_a_rest(layout, published, full_diffusers):
    source = published if layout == "published" else full_diffusers
    assert len(source) == 1480 and numbers(source) == 1_411_233_860
    assert [family.name for family in families_of(source)] == [MODELSCOPE]
    parts = read_modelscope(source)
    assert len(parts.unet) == 686 and numbers(parts.unet) == 865_910_724
    assert numbers(parts.unet) + numbers(parts.adapter) == numbers(source) and not parts.unused
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert shapes(adapter.state_dict()) == shapes(parts.adapter)
    temporal = adapter.temporal
    assert len(temporal.conv.sites) == 22 and len(temporal.after_sites()) == 17
    assert temporal.layers_after("input_blocks.0.0") and temporal.layers_after("middle_block.1")
    assert adapter.apa is None and adapter.hfa is None
    assert not parts.config.clip_norm and parts.config.temporal_on_one_frame


def test_core_takes_the_full_size_base_for_sd21(comfy_session, published):
    import comfy.model_detection
    import comfy.supported_models

    config = comfy.model_detection.model_config_from_unet(read_modelscope(published).unet, "")
    assert type(config) is comfy.supported_models.SD20


def test_values_of_rearranged_tensors(layouts):
    weights = layouts["diffusers"]
    for source in layouts.values():
        parts = read_modelscope(source)
        block = "mid_block.temp_attentions.0.transformer_blocks.0"
        joined = parts.adapter["temporal.transformer.middle_block.1.blocks.0.attn2.to_qkv.weight"]
        for part, name in zip(joined.chunk(3), ("to_q", "to_k", "to_v"), strict=True):
            assert torch.equal(part, weights[f"{block}.attn2.{name}.weight"])
        conv = parts.adapter["temporal.conv.middle_block.2.layers.3.conv.weight"]
        assert torch.equal(conv, weights["mid_block.temp_convs.1.conv4.3.weight"][..., 0])
        assert torch.equal(parts.unet["output_blocks.5.2.conv.bias"], weights["up_blocks.1.upsamplers.0.conv.bias"])
        assert torch.equal(parts.unet["output_blocks.2.1.conv.bias"], weights["up_blocks.0.upsamplers.0.conv.bias"])


# --- parity -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["published", "diffusers"])
@pytest.mark.parametrize("frames", [3, 1])
def test_parity(comfy_session, peer, layouts, layout, frames):
    import diffusers_models
    from peer_run import TIMESTEP, base_model, check, conditioning, predict, with_adapter

    parts = read_modelscope(layouts[layout])
    model = with_adapter(
        base_model(parts.unet, head_width=HEAD_WIDTH_SD21), parts.adapter, parts.config, temporal_head_width=HEAD_WIDTH_SD21
    )
    latent, texts = random_latent(frames=frames), (random_text(11, CONTEXT), random_text(12, CONTEXT))
    rows = predict(model, latent, *map(conditioning, texts))
    for row, text in zip(rows, texts, strict=True):
        check(row, diffusers_models.predict(peer, latent, TIMESTEP, text))


def test_the_layers_along_time_act(comfy_session, layouts):
    from peer_run import base_model, conditioning, difference, predict, with_adapter

    from magdiff_core.host.call import PartStrengths

    parts = read_modelscope(layouts["diffusers"])
    base = base_model(parts.unet, head_width=HEAD_WIDTH_SD21)
    texts = [conditioning(random_text(seed)) for seed in (11, 12)]
    plain = predict(base, random_latent(), *texts)[0]
    for strength, changed in ((1.0, True), (0.0, False)):
        strengths = PartStrengths(temporal=strength)
        model = with_adapter(base, parts.adapter, parts.config, strengths, temporal_head_width=HEAD_WIDTH_SD21)
        assert (difference(predict(model, random_latent(), *texts)[0], plain) > 0.1) == changed


# --- refused ----------------------------------------------------------------------------------------------------------------


def without(weights: dict, *endings: str) -> dict:
    return {key: value for key, value in weights.items() if not key.endswith(endings)}


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        (
            "diffusers",
            lambda w: without(w, "mid_block.temp_convs.0.conv2.3.bias"),
            ("1 of its", "middle_block.0.layers.1.conv.bias"),
        ),
        ("published", lambda w: without(w, "middle_block.0.temopral_conv.conv2.3.bias"), ("middle_block.0.layers.1.conv.bias",)),
        ("diffusers", lambda w: without(w, "transformer_in.proj_out.weight"), ("temporal.transformer.input_blocks.0.0.proj_out",)),
        ("published", lambda w: without(w, "output_blocks.5.3.conv.bias"), ("output_blocks.5.2.conv.bias",)),
        ("published", lambda w: without(w, "input_blocks.3.op.weight"), ("input_blocks.",)),
        ("diffusers", lambda w: {k: v for k, v in w.items() if "temp_" in k}, ("missing", "cut")),
        ("published", lambda w: {**w, "fps_embedding.0.weight": torch.ones(1)}, ("1 of its", "fps_embedding")),
        ("diffusers", lambda w: {**w, "class_embedding.weight": torch.ones(1)}, ("class_embedding", "mixed")),
    ],
)
def test_partial_and_mixed_files_are_refused(layouts, layout, change, words):
    with pytest.raises(ValueError, match=MODELSCOPE) as error:
        read_modelscope(change(layouts[layout]))
    for word in (*words, "text2video_pytorch_model.pth"):
        assert word in str(error.value)


def test_videocrafter_is_another_family(published):
    assert is_modelscope(published)
    assert not is_modelscope([*published, "init_attn.0.norm.weight"])


# --- through the loader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["published", "diffusers"])
def test_load(comfy_session, tmp_path, layout):
    from diffusers import UNet3DConditionModel
    from safetensors.torch import save_file

    from magdiff_core.host.attach import adapter_of
    from magdiff_core.host.load_checkpoint import load_checkpoint

    small = UNet3DConditionModel(
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
    )
    weights = {key: value.detach() for key, value in small.state_dict().items()}
    if layout == "published":
        weights = original_modelscope_keys(weights, layers=1, attention_below=1)
    path = tmp_path / "any name.safetensors"
    save_file({key: value.half().contiguous() for key, value in weights.items()}, path)
    loaded = load_checkpoint(str(path))
    assert loaded.clip is None and loaded.vae is None and loaded.clip_vision is None
    model = loaded.model.model
    assert model.model_type.name == "EPS" and type(model.model_config).__name__ == "SD20"
    adapter = adapter_of(loaded.model).model
    assert adapter.config.licence == "CC-BY-NC-4.0" and adapter.temporal.layers_after("input_blocks.1.1")
