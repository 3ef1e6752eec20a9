"""Condition encoders, SAFM and the published names, against stored results of the released code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magdiff_core.motion.encoders import CONTENT_CHANNELS, MOTION_CHANNELS, ConditionEncoder
from magdiff_core.motion.safm import DIRECT_SUM, NO_TIME, SpatiotemporalAdaptiveFusion
from magdiff_core.weights.revideo import CONTROL_PREFIX, control_prefix, encoder_widths, our_name, read_control, trunk_weights

FILE = Path(__file__).parent / "fixtures" / "revideo_control.safetensors"
CHANNELS, FRAMES = 32, 3
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def file():
    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(FILE).items()}


@pytest.fixture(scope="module")
def published(file):
    return {key.removeprefix("A.sd."): value for key, value in file.items() if key.startswith("A.sd.")}


@pytest.fixture(scope="module")
def weights(published):
    return read_control(published)


def part(weights: dict, name: str) -> dict:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


@pytest.fixture(scope="module")
def safm(weights):
    module = SpatiotemporalAdaptiveFusion(CHANNELS, encoder_widths(weights))
    module.load_state_dict(part(weights, "safm"))
    return module.requires_grad_(False)


def encoder(weights, name, channels):
    module = ConditionEncoder(channels, CHANNELS, encoder_widths(weights))
    module.load_state_dict(part(weights, name))
    return module.requires_grad_(False)


@pytest.fixture(scope="module")
def embeddings(file, weights):
    """E_c and E_m of the file's video and motion map."""
    content = encoder(weights, "content_encoder", CONTENT_CHANNELS)(file["A.in.video"][0].transpose(0, 1))
    motion = encoder(weights, "motion_encoder", MOTION_CHANNELS)(file["A.in.flow"])
    return content, motion


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max())


def test_encoders(file, embeddings):
    assert off(embeddings[0], file["A.mid.content_emb"]) < TOLERANCE
    assert off(embeddings[1], file["A.mid.motion_emb"]) < TOLERANCE


def test_gamma_is_the_weight_of_content(file, safm):
    gamma = safm.gamma(file["A.in.region"], file["A.in.timesteps"][:FRAMES])
    assert off(1.0 - gamma, file["A.mid.w"][:FRAMES]) < TOLERANCE


@pytest.mark.parametrize("sigma", [700.0, 0.002])
def test_gamma_follows_the_noise_level(file, safm, sigma):
    t = 0.25 * torch.tensor(sigma).log()
    assert off(1.0 - safm.gamma(file["A.in.region"][:1], t), file[f"A.mid.w_sigma_{sigma:g}"]) < TOLERANCE


def test_the_fusion(file, safm, embeddings):
    t = file["A.in.timesteps"][:FRAMES]
    assert off(safm(*embeddings, file["A.in.region"], t), file["A.mid.fused"][:FRAMES]) < TOLERANCE


def test_one_frame_of_gamma_serves_a_region_that_stands_still(file, safm, embeddings):
    region = file["A.in.region"][:1].expand(FRAMES, -1, -1, -1)
    t = file["A.in.timesteps"][:1]
    whole = safm.fuse(*embeddings, safm.gamma(region, t))
    assert off(safm.fuse(*embeddings, safm.gamma(region[:1], t)), whole) < 1e-6


def test_direct_sum_is_a_sum(safm, embeddings, file):
    got = safm(*embeddings, file["A.in.region"], file["A.in.timesteps"][:1], DIRECT_SUM)
    assert torch.equal(got, embeddings[0] + embeddings[1])


def test_no_time_does_not_depend_on_the_time(safm, embeddings, file):
    early, late = (safm(*embeddings, file["A.in.region"], torch.tensor([t]), NO_TIME) for t in (1.6, -1.5))
    assert torch.equal(early, late)
    at_zero = safm(*embeddings, file["A.in.region"], torch.zeros(1))
    assert torch.equal(early, at_zero)


def test_other_fusions_are_refused(safm, embeddings, file):
    with pytest.raises(ValueError, match="'sum'.*safm, direct sum, no time"):
        safm(*embeddings, file["A.in.region"], torch.zeros(1), "sum")


MISTAKES = {
    "content and motion changed over": lambda c, m, r, t: (m, c, r, t),
    "sigma for c_noise": lambda c, m, r, t: (c, m, r, (4.0 * t).exp()),
    "region inverted": lambda c, m, r, t: (c, m, 1.0 - r, t),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_the_fusion_show(file, safm, embeddings, name):
    given = MISTAKES[name](*embeddings, file["A.in.region"], file["A.in.timesteps"][:FRAMES])
    assert off(safm(*given), file["A.mid.fused"][:FRAMES]) > 10 * TOLERANCE


def test_mistakes_of_the_inputs_show(file, weights):
    content = encoder(weights, "content_encoder", CONTENT_CHANNELS)
    motion = encoder(weights, "motion_encoder", MOTION_CHANNELS)
    video = file["A.in.video"][0].transpose(0, 1)
    assert off(content((video + 1.0) / 2.0), file["A.mid.content_emb"]) > 10 * TOLERANCE
    assert off(motion(file["A.in.flow"].flip(1)), file["A.mid.motion_emb"]) > 10 * TOLERANCE


def test_every_published_control_key_has_a_name_here(published):
    names = {our_name(key) for key in published}
    assert None not in names
    assert len(names) == len(published)
    assert our_name("mask_embedding.conv_in.weight") == "content_encoder.conv_in.weight"
    assert our_name("controlnet_cond_embedding.blocks.3.bias") == "motion_encoder.blocks.3.bias"
    assert our_name("weight_embedding.conv_final.bias") == "safm.conv_final.bias"
    assert our_name("weight_embedding.conv_out.bias") == "safm.weight_encoder.conv_out.bias"
    assert our_name("controlnet_down_blocks.11.0.weight") == "zero_convs.11.weight"
    assert our_name("controlnet_down_blocks.3.weight") is None
    assert our_name("output_blocks.0.0.in_layers.0.weight") is None


def test_the_branch_is_found_in_a_whole_checkpoint_whatever_stands_before_it(published):
    for prefix in (CONTROL_PREFIX, "", "module.model.ctrlnet_model."):
        whole = {prefix + key: value for key, value in published.items()}
        whole |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "epoch": torch.zeros(1)}
        assert control_prefix(whole) == prefix
        assert read_control(whole).keys() == read_control(published).keys()
    assert control_prefix(trunk_weights(read_control(published))) is None


def test_a_file_without_a_branch_and_a_cut_one_are_refused(published):
    with pytest.raises(ValueError, match="no ReVideo control branch"):
        read_control({"model.diffusion_model.out.2.bias": torch.zeros(4)})
    cut = {key: value for key, value in published.items() if not key.startswith(("controlnet_mid_block", "label_emb"))}
    with pytest.raises(ValueError, match="6 of its weights are missing, such as zero_conv_middle.weight"):
        read_control(cut)
