"""Checkpoint layouts: recognised by keys, converted without a rest, refused with the reason; and files that are no weights."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import released
import torch
from safetensors.torch import save_file

from magdiff_core.adapter import AdapterConfig, MagDiffAdapter
from magdiff_core.weights.adapter_layouts import ADAPTER, RELEASED, kind_of, read_adapter_weights
from magdiff_core.weights.foreign import describe
from magdiff_core.weights.released import MAGDIFF, VIDRD, layout_of, read_released

MAGDIFF_ONLY = (".to_k_ip.weight", ".to_v_ip.weight", "_cross_attention_scale")


def full_size() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key -> (LDM key, or "+" and the LDM module that it belongs to; shape) of the released MagDiff UNet."""
    lines = (Path(__file__).parent / "fixtures" / "magdiff_unet_keys.txt").read_text().splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return {key: (ldm, tuple(map(int, shape.split("x")))) for key, ldm, shape in rows}


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def vidrd_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {key: shape for key, (_, shape) in full_size().items() if not key.endswith(MAGDIFF_ONLY)}
    return {**shapes, "conv_in.weight": (320, 4, 3, 3)}


def numbers(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


# --- full-size key lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [MAGDIFF, VIDRD])
def test_full_size_unet_is_converted_without_a_rest(layout):
    keys = full_size()
    source = meta({key: shape for key, (_, shape) in keys.items()} if layout == MAGDIFF else vidrd_shapes())
    assert len(source) == (1214 if layout == MAGDIFF else 1150)
    assert numbers(source) == (1_207_971_876 if layout == MAGDIFF else 1_182_401_284)
    parts = read_released({f"unet.{key}": value for key, value in source.items()})
    assert parts.layout == layout
    expected = {ldm: shape for key, (ldm, shape) in keys.items() if not ldm.startswith("+")}
    expected["input_blocks.0.0.weight"] = (320, 4, 3, 3)
    assert {key: tuple(value.shape) for key, value in parts.unet.items()} == expected and len(expected) == 686
    assert numbers(parts.unet) + numbers(parts.adapter) == numbers(source)
    modules = {ldm[1:] for key, (ldm, _) in keys.items() if ldm.startswith("+") and key in source}
    sites = {key.split(".", 2 if key.startswith("temporal") else 1)[-1] for key in parts.adapter if not key.startswith("hfa")}
    assert {module for module in modules if any(site.startswith(f"{module}.") for site in sites)} == modules
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in parts.adapter.items()}
    assert len(adapter.temporal.conv.sites) == 22 and len(adapter.temporal.attn.sites) == 16
    assert (adapter.apa is not None, adapter.hfa is not None) == (layout == MAGDIFF,) * 2
    assert parts.text_encoder == parts.vae == {}


def test_core_takes_the_full_size_base_for_sd21(comfy_session):
    import comfy.model_detection
    import comfy.supported_models

    parts = read_released(meta(vidrd_shapes()))
    config = comfy.model_detection.model_config_from_unet(parts.unet, "")
    assert type(config) is comfy.supported_models.SD20
    assert config.unet_config["channel_mult"] == [1, 2, 4, 4] and config.unet_config["num_head_channels"] == 64
    assert config.unet_config["transformer_depth_output"] == [1] * 9 + [0] * 3


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_prefixes(prefix):
    weights = released.unet_weights()
    parts = read_released(released.prefixed(prefix, weights))
    assert torch.equal(parts.unet["out.2.weight"], weights["conv_out.weight"])
    assert parts.config.prediction == "eps" and parts.config.latent_scale == 0.18215


def test_values_of_rearranged_tensors():
    weights = released.unet_weights()
    parts = read_released(
        {**released.prefixed("unet.", weights), **released.prefixed("enclip_projector.", released.projector_weights())}
    )
    block = "mid_block.attentions.0.transformer_blocks.0"
    qkv = parts.adapter["temporal.attn.middle_block.1.transformer_blocks.0.to_qkv.weight"]
    for index, name in enumerate(("to_q", "to_k", "to_v")):
        assert torch.equal(qkv.chunk(3)[index], weights[f"{block}.temp_attn.{name}.weight"])
    conv = parts.adapter["temporal.conv.middle_block.2.layers.3.conv.weight"]
    assert torch.equal(conv, weights["mid_block.temp_convs.1.convs.15.weight"][..., 0])
    assert torch.equal(parts.unet["input_blocks.0.0.weight"], weights["conv_in.weight"][:, :4])
    assert torch.equal(parts.adapter["hfa.conv_z.weight"], weights["conv_in.weight"][:, 4:])
    stream = "apa.output_blocks.0.1.transformer_blocks.0"
    assert parts.adapter[f"{stream}.alpha_text"].tolist() == [1.0] and parts.adapter[f"{stream}.alpha_image"].tolist() == [1.5]
    assert parts.config.image_encoder.width == 24


def test_text_encoder_and_autoencoder_parts():
    others = {
        "text_encoder.text_model.embeddings.position_ids": torch.zeros(1, 77),
        "text_encoder.text_model.final_layer_norm.weight": torch.ones(4),
        "vae.quant_conv.weight": torch.ones(8, 8, 1, 1),
        "vae.encoder.mid_block.attentions.0.query.weight": torch.ones(4, 4),
        "vae.decoder.up_blocks.0.resnets.0.norm1.weight": torch.ones(4),
        "vae.decoder.up_blocks.0.upsamplers.0.conv.weight": torch.ones(4),
        "vae.decoder.up_blocks.0.temp_convs.0.convs.3.weight": torch.ones(4),
        "vae.decoder.mid_block.temp_convs.0.convs.3.weight": torch.ones(4),
        "vae.decoder.up.0.block.0.norm1.weight": torch.ones(4),
        "epoch": torch.tensor(3),
    }
    parts = read_released({**released.prefixed("unet.", released.unet_weights(image_stream=False)), **others})
    assert set(parts.text_encoder) == {"text_model.final_layer_norm.weight"}
    dropped = {key for key in others if "temp_convs" in key or not key.startswith("vae.")}
    assert set(parts.vae) == {key.removeprefix("vae.") for key in others if key not in dropped}


def test_all_weights_of_an_autoencoder_are_kept(comfy_session):
    """Against the names of ComfyUI's own AutoencoderKL (LDM names) and, by its converter's table, of diffusers'."""
    from comfy.diffusers_convert import vae_conversion_map
    from comfy.ldm.models.autoencoder import AutoencoderKL

    options = {"z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1]}
    options |= {"double_z": True, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        ldm = list(AutoencoderKL(embed_dim=4, ddconfig=options).state_dict())
    diffusers = []
    for key in ldm:
        name = key
        for theirs, hf in vae_conversion_map:
            name = name.replace(theirs, hf)
        if "attentions" in name:
            *path, layer, tensor = name.split(".")
            layer = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}[layer]
            name = ".".join((*path, layer, tensor))
        diffusers.append(name)
    unet = released.prefixed("unet.", released.unet_weights(image_stream=False))
    for names in (ldm, diffusers):
        vae = {f"vae.{name}": torch.zeros(1) for name in names}
        assert len(vae) > 200
        assert set(read_released({**unet, **vae}).vae) == set(names)


# --- refused ----------------------------------------------------------------------------------------------------------------


def without(weights: dict, *endings: str) -> dict:
    return {key: value for key, value in weights.items() if not key.endswith(endings)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "mid_block.temp_convs.0.convs.7.bias"), ("1 of its weights", "middle_block.0.layers.1.conv.bias")),
        (lambda w: without(w, "temp_norm.bias"), ("7 of its weights", "norm.bias")),
        (lambda w: without(w, "mid_block.attentions.0.transformer_blocks.0.attn2.to_v_ip.weight"), ("middle_block.1",)),
        (lambda w: without(w, "up_blocks.1.resnets.1.conv2.weight"), ("output_blocks.3.0.out_layers.3.weight",)),
        (lambda w: without(w, "down_blocks.0.downsamplers.0.conv.weight"), ("input_blocks.2.0.op.weight",)),
        (lambda w: without(w, "up_blocks.0.resnets.0.conv_shortcut.weight"), ("skip_connection",)),
        (lambda w: without(w, "conv_in.weight"), ("input_blocks.0.0.weight",)),
        (lambda w: {k: v for k, v in w.items() if "temp_" in k or "attn2" in k}, ("missing", "whole MagDiff checkpoint")),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("up_blocks.1")}, ("missing", "output_blocks.2.0")),
        (lambda w: {**w, "conv_in.weight": w["conv_in.weight"][:, :4]}, ("takes 4 channels, not 8", "mixed")),
        (lambda w: {**w, "mid_block.motion_modules.0.weight": torch.ones(1)}, ("motion_modules", "1 of its")),
        (lambda w: {**w, "mid_block.temp_convs.0.convs.5.weight": torch.ones(1)}, ("convs.5", "Use the whole checkpoint")),
    ],
)
def test_partial_and_mixed_files_are_refused(change, words):
    weights = released.unet_weights(layers=1)
    read_released(weights)
    with pytest.raises(ValueError) as error:
        read_released(change(weights))
    assert "MagDiff" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_vidrd_with_eight_channels_is_refused():
    weights = without(released.unet_weights(), *MAGDIFF_ONLY)
    assert layout_of(weights) == VIDRD
    with pytest.raises(ValueError, match="takes 8 channels, not 4"):
        read_released(weights)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "AnimateDiff"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.0.weight", "DynamiCrafter"),
        ("down_blocks.0.temp_attentions.0.norm.weight", "ModelScope"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight", "Stable Video Diffusion"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole checkpoint"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers UNet"),
        ("vision_model.embeddings.class_embedding", "image encoder"),
        ("text_model.final_layer_norm.weight", "text encoder"),
        ("decoder.conv_in.weight", "autoencoder"),
        ("something.else", "no kind that is known here (something.else): use a file that the help page"),
    ],
)
def test_foreign_files_are_named(key, words):
    assert words in describe([key])
    with pytest.raises(ValueError, match="no MagDiff adapter") as error:
        read_adapter_weights({key: torch.ones(1)}, {})
    assert words in str(error.value)


# --- adapters ---------------------------------------------------------------------------------------------------------------


def test_own_format_is_told_by_its_metadata():
    config = AdapterConfig(frames=16)
    weights = {"hfa.conv_z.weight": torch.ones(32, 4, 3, 3)}
    assert kind_of(weights, config.to_metadata()) == ADAPTER
    read, read_config = read_adapter_weights(weights, config.to_metadata())
    assert read == weights and read_config == config
    with pytest.raises(ValueError, match="drops metadata"):
        read_adapter_weights(weights, {})
    with pytest.raises(ValueError, match="version '9'"):
        read_adapter_weights(weights, {**config.to_metadata(), "format_version": "9"})


def test_adapter_parts_of_a_whole_model(caplog):
    source = released.unet_weights()
    assert kind_of(source, {}) == RELEASED
    weights, config = read_adapter_weights(source, {})
    assert set(weights) == set(read_released(source).adapter)
    assert "Load MagDiff Checkpoint" in caplog.text and config.trained_from == "released MagDiff checkpoint"


# --- files ------------------------------------------------------------------------------------------------------------------


BAD_FILES = ("cut.safetensors", "cut.pth", "code.pth", "newer code.pth", "text.safetensors", "text.ckpt")


class Shout:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bad_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / name for name in BAD_FILES}
    save_file({"x": torch.zeros(1000)}, files["cut.safetensors"])
    torch.save({"x": torch.zeros(1000)}, files["cut.pth"])
    for name in ("cut.safetensors", "cut.pth"):
        files[name].write_bytes(files[name].read_bytes()[:2000])
    code = {"state_dict": {"x": Shout(folder / "made by a pickle")}}
    torch.save(code, files["code.pth"])
    files["newer code.pth"].write_bytes(pickle.dumps(code))
    for name in ("text.safetensors", "text.ckpt"):
        files[name].write_text("<!DOCTYPE html><title>404</title>" * 20)
    return files


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", [*BAD_FILES, "absent.pth"])
def test_files_that_are_no_weights(comfy_session, tmp_path, name):
    from magdiff_core.host.load_checkpoint import load_checkpoint
    from magdiff_core.host.tensor_file import load_tensors

    bad_files(tmp_path)
    path = tmp_path / name
    for load in (load_tensors, load_checkpoint):
        with pytest.raises(ValueError) as error:
            load(str(path))
        message = str(error.value)
        assert name in message and "weights_only" not in message and "\n" not in message
        assert ("wants to run" in message) == (name == "code.pth")
        assert ("may hold code" in message) == (name == "newer code.pth")
        assert ("no file" in message) == (name == "absent.pth")
    assert not (tmp_path / "made by a pickle").exists()


def test_pickles_of_trainers(comfy_session, tmp_path):
    from magdiff_core.host.tensor_file import load_tensors

    path = tmp_path / "MagDiff.pth"
    torch.save({"state_dict": {"x": torch.ones(2), "note": "text"}, "epoch": 3, "global_step": 7}, path)
    tensors, metadata = load_tensors(path)
    assert list(tensors) == ["x"] and metadata == {}
    for content in ({"epoch": 3, "step": 4}, [torch.ones(1)], {"state_dict": [1]}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="MagDiff.pth"):
            load_tensors(path)


# --- whole models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd21_shaped() -> dict[str, torch.Tensor]:
    """The smallest UNet that ComfyUI takes for SD2.1."""
    return released.unet_weights((320,), (True,), context=1024, scale=0.1)


@pytest.fixture(scope="module")
def whole_model(comfy_session, sd21_shaped, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("released") / "any name.pth"
    torch.save({"state_dict": released.prefixed("unet.", sd21_shaped), "epoch": 1}, path)
    return path


def test_load_a_released_model(whole_model, sd21_shaped):
    from magdiff_core.host.attach import adapter_of
    from magdiff_core.host.load_checkpoint import load_checkpoint

    loaded = load_checkpoint(str(whole_model))
    assert loaded.clip is None and loaded.vae is None and loaded.clip_vision is None
    model = loaded.model.model
    assert model.model_type.name == "EPS" and model.latent_format.scale_factor == 0.18215
    unet = model.diffusion_model
    assert type(model.model_config).__name__ == "SD20" and unet.input_blocks[1][1].transformer_blocks[0].n_heads == 5
    weight = unet.state_dict()["middle_block.1.proj_in.weight"]
    assert torch.equal(weight.float(), sd21_shaped["mid_block.attentions.0.proj_in.weight"].to(weight.dtype).float())
    adapter = adapter_of(loaded.model).model
    assert len(adapter.temporal.conv.sites) == 5 and adapter.hfa is not None and adapter.apa is not None


def test_a_released_model_can_be_rebuilt_for_another_device(whole_model):
    from magdiff_core.host.attach import adapter_of
    from magdiff_core.host.load_checkpoint import load_checkpoint

    model = load_checkpoint(str(whole_model)).model
    for patcher in (model, adapter_of(model)):
        factory, arguments = patcher.cached_patcher_init
        for options in ({}, {"disable_dynamic": True}):
            again = factory(*arguments, **options)
            assert again.model is not patcher.model
            assert {k: v.shape for k, v in again.model.state_dict().items()} == {
                k: v.shape for k, v in patcher.model.state_dict().items()
            }


def test_a_released_model_predicts_noise_whatever_core_guesses(comfy_session, tmp_path, monkeypatch, sd21_shaped):
    import comfy.model_base
    import comfy.supported_models

    from magdiff_core.host.load_checkpoint import load_checkpoint

    guess = comfy.model_base.ModelType.V_PREDICTION
    monkeypatch.setattr(comfy.supported_models.SD20, "model_type", lambda self, state_dict, prefix="": guess)
    path = tmp_path / "guessed.safetensors"
    save_file(sd21_shaped, path)
    model = load_checkpoint(str(path)).model.model
    assert model.model_type.name == "EPS"
    x, sigma = torch.ones(1), torch.full((1,), 2.0)
    assert model.model_sampling.calculate_denoised(sigma, x, x).item() == -1.0, "x - sigma * eps"


def test_text_encoder_and_autoencoder_reach_core(comfy_session, tmp_path, monkeypatch, sd21_shaped):
    import comfy.sd

    from magdiff_core.host.load_checkpoint import load_checkpoint

    class Part:
        first_stage_model = patcher = None

        def __init__(self):
            self.patcher = type("Patcher", (), {})()
            self.first_stage_model = object()

    got = {}

    def text_encoder(state_dicts, clip_type, **options):
        got["text"], got["type"] = state_dicts[0], clip_type
        return Part()

    def autoencoder(sd):
        got["vae"] = sd
        return Part()

    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", text_encoder)
    monkeypatch.setattr(comfy.sd, "VAE", autoencoder)
    layers = {f"text_encoder.text_model.encoder.layers.{i}.mlp.fc1.weight": torch.full((1,), float(i)) for i in range(23)}
    vae = {"vae.decoder.up_blocks.0.resnets.0.norm1.weight": torch.ones(1), "vae.decoder.temporal.0.weight": torch.ones(1)}
    path = tmp_path / "with everything.ckpt"
    torch.save({**released.prefixed("unet.", sd21_shaped), **layers, **vae}, path)
    loaded = load_checkpoint(str(path))
    assert loaded.clip is not None and loaded.vae is not None
    assert len(got["text"]) == 24 and got["text"]["text_model.encoder.layers.23.mlp.fc1.weight"].item() == 22
    assert got["type"] == comfy.sd.CLIPType.STABLE_DIFFUSION
    assert set(got["vae"]) == {"decoder.up_blocks.0.resnets.0.norm1.weight"}


def test_a_released_unet_of_unknown_size(comfy_session, tmp_path):
    from magdiff_core.host.load_checkpoint import load_checkpoint

    path = tmp_path / "small.safetensors"
    save_file(released.prefixed("unet.", released.unet_weights()), path)
    with pytest.raises(ValueError, match="32 channels and a text width of 32"):
        load_checkpoint(str(path))


def test_a_plain_checkpoint_goes_to_core(comfy_session, tmp_path, sd21_shaped):
    from magdiff_core.host.attach import adapter_of
    from magdiff_core.host.load_checkpoint import load_checkpoint

    path = tmp_path / "sd21.safetensors"
    save_file(released.prefixed("model.diffusion_model.", read_released(sd21_shaped).unet), path)
    loaded = load_checkpoint(str(path))
    assert type(loaded.model.model.model_config).__name__ == "SD20" and adapter_of(loaded.model) is None
    assert loaded.clip is None and loaded.vae is None


def test_an_adapter_is_no_checkpoint(comfy_session, tmp_path):
    from magdiff_core.host.load_checkpoint import load_checkpoint

    path = tmp_path / "adapter.safetensors"
    save_file({"hfa.conv_z.weight": torch.ones(32, 4, 3, 3)}, path, metadata=AdapterConfig().to_metadata())
    with pytest.raises(ValueError, match="Apply MagDiff Adapter"):
        load_checkpoint(str(path))
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, path)
    with pytest.raises(ValueError, match="LoRA"):
        load_checkpoint(str(path))
