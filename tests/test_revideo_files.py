"""ReVideo files: which parts they hold, in which form, and what is refused."""

from __future__ import annotations

import collections
import os
import sys
import types

import pytest
import revideo_files
import torch

from magdiff_core.motion.resolution import BUDGETS, working_size
from magdiff_core.weights.revideo import released_parts


@pytest.fixture(scope="module")
def load(comfy_session):
    from magdiff_core.host.control_file import load_revideo

    return load_revideo


@pytest.fixture
def lightning(monkeypatch):
    """A class of a module that pretends to be PyTorch Lightning."""
    module = types.ModuleType("pytorch_lightning.callbacks.early_stopping")

    class EarlyStopping:
        def __init__(self):
            self.patience, self.best = 3, torch.ones(1)

    EarlyStopping.__module__, EarlyStopping.__qualname__ = module.__name__, "EarlyStopping"
    module.EarlyStopping = EarlyStopping
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return EarlyStopping


def others() -> dict[str, torch.Tensor]:
    """Small stand-ins for the parts that have a size of their own, and what a trainer leaves in a file."""
    keys = (
        "conditioner.embedders.0.open_clip.model.visual.conv1.weight",
        "conditioner.embedders.0.open_clip.model.visual.positional_embedding",
        "conditioner.embedders.0.open_clip.model.visual.proj",
        "conditioner.embedders.0.open_clip.model.ln_final.weight",
        "conditioner.embedders.3.encoder.encoder.conv_in.weight",
        "conditioner.embedders.3.encoder.decoder.conv_in.weight",
        "first_stage_model.encoder.conv_in.weight",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.decoder.mid.block_1.mix_factor",
        "first_stage_model.loss.logvar",
        "model_ema.decay",
        "model.diffusion_model.optimizer.step",
    )
    return {key: torch.zeros(1) for key in keys}


@pytest.mark.parametrize("before", ["", "module.", "ema."])
def test_parts_are_found_whatever_stands_before_them(before):
    whole = {before + key: value for key, value in {**revideo_files.weights(), **others()}.items()}
    parts = released_parts(whole)
    assert len(parts.control) == sum("ctrlnet_model" in key for key in whole)
    assert "out.2.weight" in parts.unet and "trunk.input_blocks.0.0.weight" in parts.control
    assert not any("optimizer" in key for key in parts.unet)
    assert sorted(parts.image_encoder) == ["visual.conv1.weight", "visual.positional_embedding", "visual.proj"]
    assert sorted(parts.autoencoder) == ["decoder.conv_in.weight", "decoder.mid.block_1.mix_factor", "encoder.conv_in.weight"]


def test_a_unet_without_prefix_beside_a_control_branch_with_one():
    prefix = "model.diffusion_model."
    whole = {key.removeprefix(prefix): value for key, value in revideo_files.weights().items()}
    parts = released_parts(whole)
    assert parts.unet.keys() == {key.removeprefix(prefix) for key in revideo_files.weights() if key.startswith(prefix)}


def test_a_whole_file(load, tmp_path):
    loaded, control = load(str(revideo_files.save(tmp_path / "model.safetensors")))
    assert loaded.clip is None and loaded.vae is None and loaded.clip_vision is None
    assert control.clip_frames == revideo_files.CLIP_FRAMES
    own = loaded.model.model.diffusion_model.state_dict()
    for key, value in revideo_files.weights().items():
        if key.startswith("model.diffusion_model."):
            assert torch.equal(own[key.removeprefix("model.diffusion_model.")].float(), value)
    first = revideo_files.weights()["model.ctrlnet_model.controlnet_down_blocks.3.0.weight"]
    assert torch.equal(control.patcher.model.zero_convs[3].weight, first)
    assert loaded.model.model.model_sampling.sigma_max.item() == pytest.approx(700.0)


def test_the_image_encoder_of_any_size(load, tmp_path):
    """Against the formula of one of its layers, worked out here from OpenCLIP's names."""
    weights = revideo_files.image_encoder()
    loaded, _ = load(str(revideo_files.save(tmp_path / "model.safetensors", {**revideo_files.weights(), **weights})))
    model, prefix = loaded.clip_vision.model, "conditioner.embedders.0.open_clip.model.visual."
    assert loaded.clip_vision.image_size == 32
    output = loaded.clip_vision.encode_image(torch.rand(1, 32, 32, 3), crop=False)
    assert output.image_embeds.shape == (1, revideo_files.CONTEXT)
    assert output.last_hidden_state.shape == (1, revideo_files.PATCHES + 1, revideo_files.ENCODER_WIDTH)

    layer = model.vision_model.encoder.layers[1]
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    part = {key.removeprefix(f"{prefix}transformer.resblocks.1."): value for key, value in weights.items()}
    normed = torch.nn.functional.layer_norm(x, (16,), part["ln_1.weight"], part["ln_1.bias"])
    own = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    own.load_state_dict({key: part[f"attn.{key}"] for key in own.state_dict()})
    x1 = x + own(normed, normed, normed, need_weights=False)[0]
    normed = torch.nn.functional.layer_norm(x1, (16,), part["ln_2.weight"], part["ln_2.bias"])
    wide = torch.nn.functional.gelu(torch.nn.functional.linear(normed, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"]))
    expected = x1 + torch.nn.functional.linear(wide, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
    from comfy.ldm.modules.attention import optimized_attention

    # ComfyUI keeps text and image encoders in half precision
    torch.testing.assert_close(layer(x, optimized_attention=optimized_attention), expected, atol=5e-3, rtol=0)
    del weights[f"{prefix}transformer.resblocks.1.ln_2.bias"]
    cut = revideo_files.save(tmp_path / "cut.safetensors", {**revideo_files.weights(), **weights})
    with pytest.raises(ValueError, match="image encoder of this file is not whole: 1 weights are missing"):
        load(str(cut))


def test_it_can_be_made_again_for_another_device(load, tmp_path):
    loaded, control = load(str(revideo_files.save(tmp_path / "model.safetensors")))
    for patcher in (loaded.model, control.patcher):
        factory, arguments = patcher.cached_patcher_init
        again = factory(*arguments, disable_dynamic=True)
        assert again.model is not patcher.model
        assert again.model.state_dict().keys() == patcher.model.state_dict().keys()


def test_a_control_branch_alone(load, tmp_path):
    prefix = "model.ctrlnet_model."
    alone = {key.removeprefix(prefix): value for key, value in revideo_files.weights().items() if key.startswith(prefix)}
    loaded, control = load(str(revideo_files.save(tmp_path / "control.safetensors", alone)))
    assert loaded.model is None
    assert control.patcher.model.block_channels == [32] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_are_brought_to_what_is_computed_in(load, tmp_path, dtype):
    narrow = {key: value.to(dtype) for key, value in revideo_files.weights().items()}
    loaded, control = load(str(revideo_files.save(tmp_path / "narrow.safetensors", narrow)))
    # the tests run on the CPU, where core computes in float32
    assert {weight.dtype for weight in control.patcher.model.state_dict().values()} == {torch.float32}
    assert loaded.model.model_dtype() == torch.float32
    key = "controlnet_down_blocks.3.0.weight"
    assert torch.equal(control.patcher.model.zero_convs[3].weight, narrow[f"model.ctrlnet_model.{key}"].float())


def test_eight_bits_are_never_chosen_for_the_control_branch(comfy_session, monkeypatch):
    import comfy.model_management

    from magdiff_core.host.control_file import _control_dtype

    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda **options: torch.float8_e4m3fn)
    assert _control_dtype({"x": torch.zeros(2, dtype=torch.float16)}) == torch.float16


def test_a_lightning_checkpoint_loads_without_lightning(load, tmp_path, lightning, monkeypatch):
    from magdiff_core.host import control_file

    path = tmp_path / "model.ckpt"
    stored = {
        "epoch": 3,
        "callbacks": collections.OrderedDict(stop=lightning()),
        "state_dict": collections.OrderedDict(revideo_files.weights()),
    }
    torch.save(stored, path)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(control_file, "_head_channels", lambda metadata: 16)
    loaded, control = load(str(path))
    assert loaded.model is not None
    assert control.clip_frames == 14
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("beside_lightning", [False, True])
def test_a_pickle_that_wants_to_run_something_is_refused(load, tmp_path, lightning, monkeypatch, beside_lightning):
    monkeypatch.chdir(tmp_path)
    stored = {"state_dict": revideo_files.weights(), "hyper_parameters": Evil()}
    if beside_lightning:
        stored["callbacks"] = lightning()
    torch.save(stored, "model.ckpt")
    with pytest.raises(ValueError, match="wants to run or build"):
        load("model.ckpt")
    assert not os.path.exists("executed")


def test_a_placeholder_takes_anything_and_does_nothing():
    from magdiff_core.host.lightning_file import _placeholder

    kind = _placeholder("pytorch_lightning.utilities", "run")
    assert (kind.__module__, kind.__qualname__) == ("pytorch_lightning.utilities", "run")
    made = kind("touch executed", more=1)
    made.__setstate__({"patience": 3})
    assert vars(made) == {}


def test_files_without_a_control_branch_are_named(load, tmp_path):
    unet = {key: value for key, value in revideo_files.weights().items() if "ctrlnet" not in key}
    with pytest.raises(ValueError, match=r"plain.safetensors holds no ReVideo control branch: .*Stable Video Diffusion"):
        load(str(revideo_files.save(tmp_path / "plain.safetensors", unet)))


def test_cut_files_are_refused(load, tmp_path):
    weights = revideo_files.weights()
    for cut, words in (
        ("model.ctrlnet_model.controlnet_mid_block.0.bias", "zero_conv_middle.bias"),
        ("model.ctrlnet_model.input_blocks.1.0.in_layers.2.weight", "trunk.input_blocks.1.0.in_layers.2.weight"),
        ("model.diffusion_model.output_blocks.3.0.in_layers.2.weight", "output_blocks.3.0.in_layers.2.weight"),
    ):
        path = revideo_files.save(tmp_path / "cut.safetensors", {key: value for key, value in weights.items() if key != cut})
        with pytest.raises(ValueError, match=f"cut.safetensors: .*{words}"):
            load(str(path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [((1920, 1080), (1344, 768)), ((3840, 2160), (1344, 768)), ((512, 320), (1280, 832)), ((1080, 1920), (768, 1344)),
     ((640, 480), (1152, 896)), ((1024, 1024), (1024, 1024)), ((854, 480), (1344, 768)), ((2048, 1080), (1408, 768))],
)  # fmt: skip
def test_the_released_sizes(given, expected):
    assert working_size(*given, BUDGETS["1 MP (as released)"]) == expected


def test_smaller_sizes():
    assert working_size(512, 320, BUDGETS["0.16 MP (as trained)"]) == (512, 320)
    assert working_size(1024, 576, BUDGETS["0.6 MP"]) == (1024, 576)
    assert working_size(4000, 100, BUDGETS["0.16 MP (as trained)"]) == (2560, 64)
