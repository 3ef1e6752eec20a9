"""The small model's file, through ComfyUI's own objects and sampler."""

from __future__ import annotations

import copy
import json

import pytest
import torch


@pytest.fixture(scope="module")
def own(comfy_session):
    from magdiff_core.host import own_checkpoint

    return own_checkpoint


@pytest.fixture(scope="module")
def config(own):
    config = copy.deepcopy(own.MINI_CONFIG)
    config["unet"].update(model_channels=32, channel_mult=[1, 2], num_res_blocks=[1, 1], transformer_depth=[1, 1],
                          transformer_depth_output=[1, 1, 1, 1], context_dim=32, num_head_channels=16)  # fmt: skip
    for name in ("text_encoder", "image_encoder"):
        config[name].update(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=2)
    return config


@pytest.fixture(scope="module")
def weights(own, config):
    torch.manual_seed(0)
    weights = own.fresh_state_dict(config)
    for key, value in weights.items():
        if value.is_floating_point() and not value.any():
            weights[key] = torch.randn_like(value) * 0.05  # nothing at zero, so that every tensor shows
    return {key: value.half().float() if value.is_floating_point() else value for key, value in weights.items()}


@pytest.fixture(scope="module")
def path(own, config, weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mini.safetensors"
    own.save_own_checkpoint(path, weights, config)
    return path


@pytest.fixture
def loaded(own, path):
    return own.load_own_checkpoint(path)


def sampled(loaded, model=None, seed=1):
    import comfy.sample

    encode = lambda text: loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))  # noqa: E731
    latent = torch.zeros(4, 8, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return comfy.sample.sample(model or loaded.model, noise, 3, 2.0, "ddim", "ddim_uniform", encode("a red star grows"),
                               encode(""), latent, disable_pbar=True, seed=seed)  # fmt: skip


def test_weights_come_back_as_they_were_written(own, loaded, weights):
    back = {prefix + name: value for prefix, module in own.modules_of(loaded).items()
            for name, value in module.state_dict().items()}  # fmt: skip
    assert set(back) == set(weights)
    for key, value in weights.items():
        assert torch.equal(back[key].float(), value.float()), key


def test_structure_is_found_from_the_file(loaded):
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.model_base

    unet = loaded.model.model.diffusion_model
    assert type(unet) is openaimodel.UNetModel and unet.model_channels == 32
    assert {block.d_head for block in unet.modules() if hasattr(block, "d_head")} == {16}
    assert loaded.model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    assert loaded.vae.spacial_compression_encode() == 4


def test_config_is_kept_out_of_comfyui_s_list(own):
    import comfy.supported_models

    assert own.OwnModelConfig not in comfy.supported_models.models


def test_stock_sampler_and_decoder_take_it(loaded):
    samples = sampled(loaded)
    assert samples.shape == (4, 8, 16, 16) and torch.isfinite(samples).all() and samples.std() > 0.1
    pictures = loaded.vae.decode(samples)
    assert pictures.shape == (4, 64, 64, 3) and 0 <= pictures.min() and pictures.max() <= 1
    assert loaded.vae.encode(pictures).shape == (4, 8, 16, 16)


def test_prompt_reaches_the_sample(loaded):
    import comfy.sample

    noise = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for text in ("a red star grows", "a blue heart shrinks"):
        positive = loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))
        results.append(comfy.sample.sample(loaded.model, noise, 2, 1.0, "ddim", "ddim_uniform", positive, positive,
                                           torch.zeros_like(noise), disable_pbar=True, seed=0))  # fmt: skip
    assert not torch.allclose(results[0], results[1], atol=1e-3)


def test_text_encoder_pads_to_its_own_length_and_weights_words(loaded, config):
    (batch,) = loaded.clip.tokenize("a red star")["magdiff"]
    assert len(batch) == config["text_encoder"]["max_position_embeddings"]
    plain, pooled = loaded.clip.encode_from_tokens(loaded.clip.tokenize("a red star"), return_pooled=True)
    heavy = loaded.clip.encode_from_tokens(loaded.clip.tokenize("a (red:1.5) star"))
    assert plain.shape == (1, len(batch), 32) and pooled.shape == (1, 32)
    assert not torch.allclose(plain, heavy)


def test_long_prompts_are_split_like_clip_prompts(loaded):
    tokens = loaded.clip.tokenize("a red star grows " * 12)["magdiff"]
    assert len(tokens) > 1 and all(len(batch) == 24 for batch in tokens)
    assert loaded.clip.encode_from_tokens({"magdiff": tokens}).shape == (1, 24 * len(tokens), 32)


def test_image_encoder_gives_one_token_a_patch_and_the_class_token(loaded):
    output = loaded.clip_vision.encode_image(torch.rand(2, 80, 100, 3), crop=False)
    assert output.last_hidden_state.shape == (2, 1 + 8 * 8, 32)


def test_zero_terminal_snr_reaches_the_sampler(loaded):
    assert float(loaded.model.model.model_sampling.sigma_max) > 1000


def test_deep_clones_and_clones_give_the_same_sample(loaded):
    expected = sampled(loaded)
    deep = loaded.model.clone(force_deepcopy=True)
    assert deep.model is not loaded.model.model
    assert torch.equal(sampled(loaded, deep), expected)
    assert torch.equal(sampled(loaded, loaded.model.clone()), expected)


def test_missing_and_foreign_tensors_are_named(own, weights, config):
    key = "model.diffusion_model.out.2.bias"
    with pytest.raises(ValueError, match=r"out\.2\.bias"):
        own.assemble({name: value for name, value in weights.items() if name != key}, config)
    with pytest.raises(ValueError, match="something_else"):
        own.assemble({**weights, "first_stage_model.something_else": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="image_encoder"):
        own.assemble({name: value for name, value in weights.items() if not name.startswith("image_encoder")}, config)


def test_foreign_newer_and_cut_files_are_refused_by_name(own, config, path, tmp_path):
    from safetensors.torch import save_file

    foreign, newer, cut = (tmp_path / name for name in ("foreign.safetensors", "newer.safetensors", "cut.safetensors"))
    save_file({"a": torch.zeros(1)}, foreign)
    save_file({"a": torch.zeros(1)}, newer, {"format": own.FORMAT, "format_version": "2", "config": json.dumps(config)})
    cut.write_bytes(path.read_bytes()[:-1000])
    for file, words in ((foreign, "no MagDiff checkpoint"), (newer, "update the pack"), (cut, "cannot read")):
        with pytest.raises(ValueError, match=words) as caught:
            own.load_own_checkpoint(file)
        assert file.name in str(caught.value)
