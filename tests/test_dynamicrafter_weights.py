"""VideoCrafter and DynamiCrafter files: recognised by keys, converted without a rest, refused with the reason, loaded whole."""

from __future__ import annotations

import logging
from pathlib import Path

import lvdm_files
import pytest
import released
import torch
from safetensors.torch import save_file

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.weights.families import families_of, read_checkpoint
from magdiff_core.weights.lvdm import read_lvdm
from magdiff_core.weights.lvdm_settings import DYNAMICRAFTER, DYNAMICRAFTER_256, VIDEOCRAFTER1, VIDEOCRAFTER2

FIXTURES = Path(__file__).parent / "fixtures"
UNET = "model.diffusion_model."
LAYOUTS = (DYNAMICRAFTER_256, DYNAMICRAFTER, VIDEOCRAFTER1, VIDEOCRAFTER2)
SMALL = {
    DYNAMICRAFTER_256: {},
    DYNAMICRAFTER: {"alpha": False},
    VIDEOCRAFTER1: {"alpha": False, "channels_in": 4},
    VIDEOCRAFTER2: {"alpha": False, "channels_in": 4, "image_stream": False, "projector": {}},
}


def lines(name: str) -> list[list[str]]:
    return [line.split() for line in (FIXTURES / name).read_text().splitlines() if not line.startswith("#")]


def full_size(layout: str) -> dict[str, torch.Tensor]:
    """Meta tensors of a whole published file's UNet and projector."""
    shapes = {line[0]: tuple(map(int, line[1].split("x"))) if len(line) > 1 else () for line in lines("dynamicrafter_keys.txt")}
    if layout != DYNAMICRAFTER_256:
        shapes = {key: shape for key, shape in shapes.items() if not key.endswith(".alpha")}
    if layout in (VIDEOCRAFTER1, VIDEOCRAFTER2):
        shapes |= {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), "image_proj_model.latents": (1, 16, 1024)}
    if layout == VIDEOCRAFTER2:
        shapes = {key: shape for key, shape in shapes.items() if "_ip." not in key and not key.startswith("image_proj_model.")}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def numbers(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def sd21() -> dict[str, tuple[int, ...]]:
    """SD2.1's UNet in LDM names, from the list of the released MagDiff UNet."""
    base = {ldm: tuple(map(int, shape.split("x"))) for _, ldm, shape in lines("magdiff_unet_keys.txt") if not ldm.startswith("+")}
    return {**base, "input_blocks.0.0.weight": (320, 4, 3, 3)}


# --- full-size key lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "tensors", "parameters"),
    [
        (DYNAMICRAFTER_256, 1532, 1_438_854_996),
        (DYNAMICRAFTER, 1516, 1_438_854_980),
        (VIDEOCRAFTER1, 1516, 1_438_843_460),
        (VIDEOCRAFTER2, 1484, 1_413_284_420),
    ],
)
def test_full_size_is_converted_without_a_rest(layout, tensors, parameters):
    source = full_size(layout)
    unet = {key: value for key, value in source.items() if key.startswith(UNET)}
    assert (len(unet), numbers(unet)) == (tensors, parameters)
    assert [family.name for family in families_of(source)] == ["VideoCrafter or DynamiCrafter"]
    parts = read_checkpoint(source)
    assert parts.layout == layout and parts.unused == ()
    assert {key: tuple(value.shape) for key, value in parts.unet.items()} == sd21()
    streams = 0 if layout == VIDEOCRAFTER2 else 16
    # Two weights of each stream stand for one alpha, or for none.
    added = 2 * streams - (streams if layout == DYNAMICRAFTER_256 else 0)
    assert numbers(parts.unet) + numbers(parts.adapter) == numbers(source) + added
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in parts.adapter.items()}
    assert len(adapter.temporal.conv.sites) == 22 and len(adapter.temporal.transformer.sites) == 17
    assert (adapter.apa is None) == (adapter.projector is None) == (layout == VIDEOCRAFTER2)
    assert (adapter.hfa is not None) == layout.startswith("DynamiCrafter")
    for site in adapter.temporal.transformer.sites:
        layer = adapter.temporal.transformer.find(site)
        inner = layer.proj_in.out_features
        assert inner == (512 if site == "input_blocks.0.0" else layer.channels)
        assert layer.blocks[0].attn1.heads == layer.blocks[0].attn2.heads == inner // 64
    assert adapter.apa is None or adapter.projector.layers[0][0].heads == 12


def test_settings_of_each_model():
    of = {layout: read_lvdm(full_size(layout)).config for layout in LAYOUTS}
    assert [of[layout].prediction for layout in LAYOUTS] == ["eps", "v", "eps", "eps"]
    assert [of[layout].schedule.zero_terminal_snr for layout in LAYOUTS] == [False, True, False, False]
    assert [of[layout].schedule.base_scale for layout in LAYOUTS] == [1.0, 0.7, 0.7, 0.7]
    assert [of[layout].fps for layout in LAYOUTS] == [3, 24, 8, 28]
    assert [of[layout].tokens_per_frame for layout in LAYOUTS] == [16, 16, 0, 0]
    for config in of.values():
        assert (config.clip_norm, config.frames, config.temporal_on_one_frame) == (False, 16, True)
        assert (config.image_tokens, config.negative_picture, config.subject_frames) == ("picture", "grey", "all")
        assert (config.image_encoder.layer, config.image_encoder.crop, config.image_encoder.channels) == ("last", False, "rgb")


# --- noise schedules that the file keeps --------------------------------------------------------------------------------------


def scale_arr(base_scale: float) -> torch.Tensor:
    return torch.cat((torch.linspace(1.0, base_scale, 400), torch.full((1000,), base_scale)))


@pytest.mark.parametrize(("base_scale", "rate"), [(0.7, 24.0), (0.3, 10.0)])
def test_scale_of_the_latents_is_read_from_the_file(base_scale, rate, caplog):
    config = read_lvdm({**lvdm_files.checkpoint(**SMALL[DYNAMICRAFTER]), "scale_arr": scale_arr(base_scale)}).config
    assert (config.schedule.base_scale, config.schedule.turning_step, config.fps) == (base_scale, 400, rate)
    assert caplog.text == ""


def test_a_file_that_lost_its_scale_says_so(caplog):
    config = read_lvdm(lvdm_files.checkpoint(**SMALL[DYNAMICRAFTER])).config
    assert config.schedule.base_scale == 0.7 and "lacks scale_arr" in caplog.text and "choose the variant" in caplog.text
    caplog.clear()
    for layout in (DYNAMICRAFTER_256, VIDEOCRAFTER1, VIDEOCRAFTER2):
        read_lvdm(lvdm_files.checkpoint(**SMALL[layout]))
    assert caplog.text == ""


# --- values -----------------------------------------------------------------------------------------------------------------


def test_values_of_rearranged_tensors():
    weights = lvdm_files.checkpoint()
    parts = read_lvdm(weights)
    source = {key.removeprefix(UNET): value for key, value in weights.items()}
    site = "temporal.transformer.middle_block.1"
    qkv = parts.adapter[f"{site}.blocks.0.attn2.to_qkv.weight"]
    for index, name in enumerate(("to_q", "to_k", "to_v")):
        assert torch.equal(qkv.chunk(3)[index], source[f"middle_block.2.transformer_blocks.0.attn2.{name}.weight"])
    out = source["middle_block.2.transformer_blocks.0.ff.net.2.weight"]
    assert torch.equal(parts.adapter[f"{site}.blocks.0.ff.out.weight"], out)
    conv = parts.adapter["temporal.conv.middle_block.2.layers.3.conv.weight"]
    assert torch.equal(conv, source["middle_block.3.temopral_conv.conv4.3.weight"][..., 0])
    first = parts.adapter["temporal.transformer.input_blocks.0.0.proj_in.weight"]
    assert torch.equal(first, source["init_attn.0.proj_in.weight"][..., 0])
    assert torch.equal(parts.unet["middle_block.2.in_layers.2.weight"], source["middle_block.3.in_layers.2.weight"])
    assert torch.equal(parts.unet["output_blocks.1.2.conv.weight"], source["output_blocks.1.3.conv.weight"])
    assert torch.equal(parts.unet["input_blocks.0.0.weight"], source["input_blocks.0.0.weight"][:, :4])
    assert torch.equal(parts.adapter["hfa.conv_z.weight"], source["input_blocks.0.0.weight"][:, 4:])
    stream = "output_blocks.0.1.transformer_blocks.0"
    assert parts.adapter[f"apa.{stream}.alpha_text"].tolist() == [1.0]
    alpha = source[f"{stream}.attn2.alpha"]
    assert parts.adapter[f"apa.{stream}.alpha_image"].tolist() == pytest.approx([1.0 + torch.tanh(alpha).item()])
    assert torch.equal(parts.adapter["projector.latents"], weights["image_proj_model.latents"])
    plain = read_lvdm(lvdm_files.checkpoint(**SMALL[VIDEOCRAFTER1])).adapter
    assert plain[f"apa.{stream}.alpha_image"].tolist() == [1.0] and "hfa.conv_z.weight" not in plain


def test_the_upsampler_of_a_level_without_transformers():
    parts = read_lvdm(lvdm_files.checkpoint(attention=(True, False)))
    assert "output_blocks.1.1.conv.weight" in parts.unet and "output_blocks.1.2.conv.weight" not in parts.unet


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: "module._forward_module." + k], ids=["", "DeepSpeed"])
@pytest.mark.parametrize("rate", ["fps_embedding", "framestride_embed"])
def test_names_around_the_model(wrap, rate):
    weights = {wrap(key.replace("fps_embedding", rate)): value for key, value in lvdm_files.checkpoint().items()}
    assert read_checkpoint(weights).layout == DYNAMICRAFTER_256
    assert "temporal.fps_embedding.2.bias" in read_checkpoint(weights).adapter


def test_a_unet_alone():
    weights = lvdm_files.unet_weights()
    assert set(read_checkpoint(weights).unet) == set(read_lvdm(lvdm_files.checkpoint()).unet)


def test_other_parts_of_the_file():
    others = {
        "cond_stage_model.model.transformer.resblocks.0.ln_1.weight": torch.ones(1),
        "cond_stage_model.model.token_embedding.weight": torch.ones(1),
        "cond_stage_model.model.logit_scale": torch.ones(1),
        "cond_stage_model.model.attn_mask": torch.ones(1),
        "embedder.model.visual.proj": torch.ones(1),
        "embedder.model.token_embedding.weight": torch.ones(1),
        "first_stage_model.encoder.conv_in.weight": torch.ones(1),
        "first_stage_model.post_quant_conv.bias": torch.ones(1),
        "first_stage_model.loss.logvar": torch.ones(1),
        "betas": torch.ones(1000),
    }
    parts = read_lvdm({**lvdm_files.checkpoint(), **others})
    assert set(parts.text_encoder) == {"transformer.resblocks.0.ln_1.weight", "token_embedding.weight"}
    assert set(parts.image_encoder) == {"visual.proj"}
    assert set(parts.vae) == {"encoder.conv_in.weight", "post_quant_conv.bias"}
    kept = 2 + 1 + 2
    assert len(parts.unused) == len(others) - kept and "betas" in parts.unused


# --- refused ----------------------------------------------------------------------------------------------------------------


def without(weights: dict, *endings: str) -> dict:
    return {key: value for key, value in weights.items() if not key.endswith(endings)}


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        (DYNAMICRAFTER_256, lambda w: without(w, "middle_block.3.temopral_conv.conv2.3.bias"), ("1 of its", "layers.1.conv.bias")),
        (DYNAMICRAFTER_256, lambda w: without(w, "init_attn.0.norm.weight"), ("input_blocks.0.0.norm.weight",)),
        (DYNAMICRAFTER_256, lambda w: without(w, "middle_block.1.transformer_blocks.0.attn2.alpha"), ("middle_block.1", "alpha")),
        (DYNAMICRAFTER_256, lambda w: without(w, "output_blocks.3.0.out_layers.3.weight"), ("output_blocks.3.0.out_layers.3",)),
        (DYNAMICRAFTER_256, lambda w: without(w, "output_blocks.1.3.conv.weight"), ("output_blocks.1.2.conv.weight",)),
        (DYNAMICRAFTER_256, lambda w: without(w, "input_blocks.0.0.weight"), ("input_blocks.0.0.weight",)),
        (DYNAMICRAFTER, lambda w: without(w, "middle_block.1.transformer_blocks.0.attn2.to_v_ip.weight"), ("to_v_image",)),
        (VIDEOCRAFTER2, lambda w: without(w, "fps_embedding.2.bias"), ("fps_embedding.2.bias",)),
        (VIDEOCRAFTER1, lambda w: {k: v for k, v in w.items() if "output_blocks" not in k}, ("missing", "model.ckpt")),
        (DYNAMICRAFTER_256, lambda w: {**w, f"{UNET}middle_block.2.extra": torch.ones(1)}, ("middle_block.2.extra", "not part")),
        (DYNAMICRAFTER_256, lambda w: {**w, f"{UNET}middle_block.0.time_stack.x": torch.ones(1)}, ("time_stack", "mixed")),
        (DYNAMICRAFTER_256, lambda w: {k: v[:, :4] if k.endswith(".0.0.weight") and v.ndim == 4 else v for k, v in w.items()},
         ("takes 4 channels", "learned weights", "mixed")),
    ],
)  # fmt: skip
def test_partial_and_mixed_files_are_refused(layout, change, words):
    weights = lvdm_files.checkpoint(**SMALL[layout])
    assert read_checkpoint(weights).layout == layout
    with pytest.raises(ValueError) as error:
        read_checkpoint(change(weights))
    for word in ("Crafter", "Use model.ckpt", *words):
        assert word in str(error.value)


def test_relative_positions_are_named():
    key = f"{UNET}input_blocks.1.2.transformer_blocks.0.attn1.relative_position_k.embeddings_table"
    with pytest.raises(ValueError, match="VideoCrafter1 text-to-video.*use VideoCrafter2"):
        read_checkpoint({**lvdm_files.checkpoint(), key: torch.ones(1)})


def test_a_file_of_two_families():
    motion = {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": torch.ones(32)}
    with pytest.raises(ValueError, match="VideoCrafter or DynamiCrafter and of AnimateDiff.*Use each as it was published"):
        read_checkpoint({**lvdm_files.checkpoint(), **motion})


# --- loading ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LAYOUTS)
def whole(request, comfy_session, tmp_path_factory):
    """(layout, path) of the smallest file whose UNet ComfyUI takes for SD2.1."""
    size = {"widths": (320,), "attention": (True,), "context": 1024, "scale": 0.1, "head": 64}
    projector = {} if request.param == VIDEOCRAFTER2 else released.projector_weights(token_width=1024)
    weights = lvdm_files.checkpoint(**{**SMALL[request.param], **size, "projector": projector})
    path = tmp_path_factory.mktemp("lvdm") / "model.ckpt"
    torch.save({"state_dict": weights, "global_step": 3}, path)
    return request.param, str(path)


def test_load(whole, caplog):
    from magdiff_core.host.attach import adapter_of
    from magdiff_core.host.load_checkpoint import load_checkpoint
    from magdiff_core.host.schedule import AdapterEps, AdapterV

    layout, path = whole
    loaded = load_checkpoint(path)
    sampling = loaded.model.get_model_object("model_sampling")
    kind = {DYNAMICRAFTER: AdapterV, DYNAMICRAFTER_256: None}.get(layout, AdapterEps)
    prediction = "V_PREDICTION" if layout == DYNAMICRAFTER else "EPS"
    assert loaded.model.model.model_type.name == prediction
    assert (type(sampling) if kind else None) is kind
    adapter = adapter_of(loaded.model).model
    assert adapter.temporal.transformer.find("input_blocks.0.0").blocks[0].attn1.heads == 8
    for patcher in (loaded.model, adapter_of(loaded.model)):
        factory, arguments = patcher.cached_patcher_init
        again = factory(*arguments, disable_dynamic=True)
        shapes = ({k: v.shape for k, v in model.state_dict().items()} for model in (again.model, patcher.model))
        assert next(shapes) == next(shapes)


def test_run(whole):
    """Through the nodes' own steps: the clip, the picture and the slider act."""
    import tiny_run as run

    from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens
    from magdiff_core.host.load_checkpoint import load_checkpoint

    layout, path = whole
    model = load_checkpoint(path).model
    entries = {}
    if layout != VIDEOCRAFTER2:
        entries["tokens"] = SubjectTokens({"last": run.random(1, 2, 5, 24, seed=3)}, False, True)
    if layout in (DYNAMICRAFTER, DYNAMICRAFTER_256):
        entries["latents"] = SubjectLatents((run.random(1, 1, 4, 8, 8, seed=4),), 2, GENERATE)

    def sampled(**more):
        texts = [[[run.random(1, 77, 1024, seed=seed), {}]] for seed in (1, 2)]
        conds = run.attach(texts[0], **entries, **more), run.attach(texts[1], negative=True, **entries, **more)
        return run.run(model, *conds, frames=2, steps=1)

    out = sampled()
    assert torch.isfinite(out).all()
    if entries:
        assert run.difference(sampled(alphas=run.AlphaSettings(alpha_image=0.0)), out) > 1e-4
    if "latents" in entries:
        entries["latents"] = SubjectLatents((run.random(1, 1, 4, 8, 8, seed=5),), 2, GENERATE)
        assert run.difference(sampled(), out) > 1e-4


def test_the_variant_of_the_user(comfy_session, tmp_path):
    from magdiff_core.host.foreign_checkpoint import _read
    from magdiff_core.host.load_checkpoint import load_checkpoint

    path = tmp_path / "pruned.safetensors"
    save_file(lvdm_files.checkpoint(**SMALL[DYNAMICRAFTER]), path)
    config = _read(str(path), "DynamiCrafter-1024").config
    assert (config.schedule.base_scale, config.fps, config.schedule.zero_terminal_snr) == (0.3, 10.0, True)
    save_file(lvdm_files.checkpoint(), path)
    with pytest.raises(ValueError, match="variant is 'DynamiCrafter-1024', but this file is DynamiCrafter-256"):
        load_checkpoint(str(path), "DynamiCrafter-1024")
    save_file({"vision_model.x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no DynamiCrafter model"):
        load_checkpoint(str(path), "DynamiCrafter-1024")


def test_adapter_parts_of_a_whole_model(caplog):
    from magdiff_core.weights.adapter_layouts import read_adapter_weights

    with caplog.at_level(logging.WARNING):
        weights, config = read_adapter_weights(lvdm_files.checkpoint(), {})
    assert "Load MagDiff Checkpoint uses both" in caplog.text and config.tokens_per_frame == 16
    assert {key.split(".")[0] for key in weights} == {"temporal", "apa", "hfa", "projector"}


def test_text_and_image_encoder_reach_core(comfy_session, tmp_path, monkeypatch):
    import comfy.sd

    from magdiff_core.host import foreign_checkpoint

    got = {}

    class Part:
        def __init__(self):
            self.patcher = type("Patcher", (), {})()
            self.first_stage_model = object()

    monkeypatch.setattr(
        comfy.sd, "load_text_encoder_state_dicts", lambda state_dicts, **options: got.update(text=state_dicts[0]) or Part()
    )
    monkeypatch.setattr(comfy.sd, "VAE", lambda sd: got.update(vae=sd) or Part())
    monkeypatch.setattr(foreign_checkpoint, "build_image_encoder", lambda weights: got.update(image=weights) or Part())
    monkeypatch.setattr(foreign_checkpoint, "_base_model", lambda released: Part())
    monkeypatch.setattr(foreign_checkpoint, "apply_adapter", lambda base, adapter, strengths: base)
    text = "cond_stage_model.model."
    others = {
        f"{text}transformer.resblocks.0.attn.in_proj_weight": torch.arange(6.0).reshape(6, 1),
        f"{text}transformer.resblocks.0.mlp.c_fc.weight": torch.ones(1, 1),
        f"{text}token_embedding.weight": torch.ones(1),
        f"{text}text_projection": torch.ones(2, 2),
        "embedder.model.visual.conv1.weight": torch.ones(1),
        "first_stage_model.decoder.conv_in.weight": torch.ones(1),
    }
    path = tmp_path / "whole.safetensors"
    save_file({**lvdm_files.checkpoint(), **others}, path)
    loaded = foreign_checkpoint.load_full_checkpoint(str(path))
    assert None not in (loaded.clip, loaded.vae, loaded.clip_vision)
    assert set(got["image"]) == {"visual.conv1.weight"} and set(got["vae"]) == {"decoder.conv_in.weight"}
    layer = "text_model.encoder.layers.0"
    assert got["text"][f"{layer}.self_attn.k_proj.weight"].flatten().tolist() == [2.0, 3.0]
    assert f"{layer}.mlp.fc1.weight" in got["text"] and "text_model.embeddings.token_embedding.weight" in got["text"]
