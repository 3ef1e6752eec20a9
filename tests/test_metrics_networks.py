"""CLIP, DINO, I3D and C3D on tiny random weights: equal to other implementations of the same networks, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn import Conv3d, Linear

from magdiff_core.metrics import load, pictures
from magdiff_core.metrics.c3d import OPENMMLAB, PLAIN, read_c3d
from magdiff_core.metrics.encoder_layouts import LayoutError, read_clip, read_dino
from magdiff_core.metrics.i3d import BRANCHES, ORDER, STEM, read_i3d
from magdiff_core.metrics.weights_file import is_torchscript, read_tensors, record_of

TOLERANCE = 1e-5
END = 63


def seeded(module):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        # larger than usual, so that a wrong activation or epsilon shows
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.2) + (
            1.0 if parameter.ndim == 1 else 0.0
        )
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peer():
    """A CLIP of `transformers` with heads of 64 numbers, as published ones up to L."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": END + 1,
            "max_position_embeddings": 12, "eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 128, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 24,
            "patch_size": 8,
        },
        projection_dim=48,
    )  # fmt: skip
    return seeded(CLIPModel(config))


def some_pictures(count, side, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def features_of(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


TOKENS = torch.tensor([[END - 1, 5, 9, END, 0, 0, 0, 0, 0, 0, 0, 0], [END - 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, END]])


def test_clip_equals_transformers(peer):
    tower, text = read_clip(peer.state_dict(), "tiny")
    frames = some_pictures(5, 24)
    expected = features_of(peer.get_image_features(frames))
    assert (tower(frames) - expected).abs().max() < TOLERANCE * expected.abs().max()
    expected = features_of(peer.get_text_features(TOKENS, attention_mask=torch.ones_like(TOKENS)))
    assert (text(TOKENS) - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_clip_with_gelu_and_own_heads_by_its_config(tmp_path, peer):
    from transformers import CLIPModel

    config = peer.config
    for part in (config.text_config, config.vision_config):
        part.hidden_act = "gelu"
    config.vision_config.num_attention_heads = 4
    other = seeded(CLIPModel(config))
    other.save_pretrained(tmp_path)
    encoder = load.load_clip(tmp_path / "model.safetensors", lambda prompts, length: (TOKENS[:1], [False]))
    frames = some_pictures(2, 24)
    expected = features_of(other.get_image_features(frames))
    assert (encoder.picture_tower(frames) - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert encoder.picture_tower.sizes.heads == 4 and encoder.picture_tower.sizes.activation == "gelu"
    (tmp_path / "model.safetensors").rename(tmp_path / "renamed.safetensors")
    encoder = load.load_clip(tmp_path / "renamed.safetensors", None)
    assert encoder.picture_tower.sizes.activation == "quick_gelu", "a config beside a file of another name is not its own"
    for part in (config.text_config, config.vision_config):
        part.hidden_act = "quick_gelu"
    config.vision_config.num_attention_heads = 2


def openai_names(state):
    """The same weights under the names of OpenAI's and open_clip's files."""
    result = {}
    for half, old, new in (("vision_model", "vision_model.", "visual."), ("text_model", "text_model.", "")):
        layers = {key.split(".")[3] for key in state if key.startswith(f"{half}.encoder.layers.")}
        for number in layers:
            at, to = f"{old}encoder.layers.{number}.", f"{new}transformer.resblocks.{number}."
            for kind in ("weight", "bias"):
                result[f"{to}attn.in_proj_{kind}"] = torch.cat([state[f"{at}self_attn.{x}_proj.{kind}"] for x in "qkv"])
                for theirs, ours in (
                    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                ):  # fmt: skip
                    result[f"{to}{ours}.{kind}"] = state[f"{at}{theirs}.{kind}"]
    for kind in ("weight", "bias"):
        result[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        result[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        result[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
    result["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    result["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    result["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    result["visual.proj"] = state["visual_projection.weight"].T
    result["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    result["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    result["text_projection"] = state["text_projection.weight"].T
    return {key: value.contiguous() for key, value in result.items()}


def test_clip_in_openais_layout_is_the_same(peer):
    tower, text = read_clip(openai_names(peer.state_dict()), "tiny")
    frames = some_pictures(2, 24)
    assert torch.allclose(tower(frames), features_of(peer.get_image_features(frames)), atol=1e-4)
    expected = features_of(peer.get_text_features(TOKENS, attention_mask=torch.ones_like(TOKENS)))
    assert torch.allclose(text(TOKENS), expected, atol=1e-4)


def test_half_a_clip_and_a_missing_projection_are_refused(peer):
    state = peer.state_dict()
    picture_half = {key: value for key, value in state.items() if key.startswith(("vision", "visual"))}
    assert read_clip(picture_half, "half")[1] is None
    text_half = {key: value for key, value in state.items() if key.startswith("text")}
    with pytest.raises(LayoutError, match="half.safetensors holds only the text half"):
        read_clip(text_half, "half.safetensors")
    # what ComfyUI's CLIP of an SD1.5 checkpoint lacks: nothing may stand in for it
    without = {key: value for key, value in state.items() if key != "text_projection.weight"}
    with pytest.raises(LayoutError, match="sd.safetensors has no text_projection.weight: a whole CLIP file"):
        read_clip(without, "sd.safetensors")
    checkpoint = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(4)}
    with pytest.raises(LayoutError, match="without its picture half"):
        read_clip(checkpoint, "sd15.safetensors")
    with pytest.raises(LayoutError, match="no CLIP file"):
        read_clip({"weight": torch.ones(3)}, "other.safetensors")


def test_halves_of_different_clips_are_refused(peer):
    state = dict(peer.state_dict())
    state["text_projection.weight"] = state["text_projection.weight"][:32]
    with pytest.raises(LayoutError, match="ends in 48 numbers, its text half in 32"):
        read_clip(state, "mixed.safetensors")


@pytest.mark.parametrize(
    ("width", "heads", "activation"),
    [(768, 12, "quick_gelu"), (1024, 16, "quick_gelu"), (1280, 16, "gelu"), (1664, 16, "gelu")],
    ids=["B", "L", "H", "bigG"],
)
def test_heads_and_activation_of_published_sizes(width, heads, activation):
    zero = torch.zeros(1)
    state = {
        "visual.conv1.weight": zero.expand(width, 3, 2, 2), "visual.class_embedding": zero.expand(width),
        "visual.positional_embedding": zero.expand(5, width), "visual.proj": zero.expand(width, 8),
    }  # fmt: skip
    for name in ("ln_pre", "ln_post", "transformer.resblocks.0.ln_1", "transformer.resblocks.0.ln_2"):
        state |= {f"visual.{name}.{kind}": zero.expand(width) for kind in ("weight", "bias")}
    at = "visual.transformer.resblocks.0"
    for name, (out, before) in {
        "attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width), "mlp.c_fc.": (8, width), "mlp.c_proj.": (width, 8),
    }.items():  # fmt: skip
        state |= {f"{at}.{name}weight": zero.expand(out, before), f"{at}.{name}bias": zero.expand(out)}
    sizes = read_clip(state, "published")[0].sizes
    assert (sizes.heads, sizes.activation, sizes.side) == (heads, activation, 4)


@pytest.fixture(scope="module")
def dino_peer():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    return seeded(ViTModel(config, add_pooling_layer=False))


def test_dino_equals_transformers(tmp_path, dino_peer):
    dino_peer.save_pretrained(tmp_path)
    encoder = load.load_dino(tmp_path / "model.safetensors")
    frames = some_pictures(3, 32)
    expected = dino_peer(frames).last_hidden_state[:, 0]
    assert (encoder.tower(frames) - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_dino_in_its_own_layout_is_the_same(tmp_path, dino_peer):
    dino_peer.save_pretrained(tmp_path)
    state = read_tensors(tmp_path / "model.safetensors")
    own = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        **{f"patch_embed.proj.{kind}": state[f"embeddings.patch_embeddings.projection.{kind}"] for kind in ("weight", "bias")},
        **{f"norm.{kind}": state[f"layernorm.{kind}"] for kind in ("weight", "bias")},
    }
    for number in range(3):
        at, to = f"encoder.layer.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            three = [state[f"{at}attention.attention.{x}.{kind}"] for x in ("query", "key", "value")]
            own[f"{to}attn.qkv.{kind}"] = torch.cat(three)
            own[f"{to}attn.proj.{kind}"] = state[f"{at}attention.output.dense.{kind}"]
            own[f"{to}norm1.{kind}"] = state[f"{at}layernorm_before.{kind}"]
            own[f"{to}norm2.{kind}"] = state[f"{at}layernorm_after.{kind}"]
            own[f"{to}mlp.fc1.{kind}"] = state[f"{at}intermediate.dense.{kind}"]
            own[f"{to}mlp.fc2.{kind}"] = state[f"{at}output.dense.{kind}"]
    frames = some_pictures(3, 32)
    assert torch.equal(read_dino(own, "own")(frames), read_dino(state, "hf")(frames))
    with pytest.raises(LayoutError, match="a later DINO"):
        read_dino({**own, "blocks.0.ls1.gamma": torch.ones(128)}, "dino2")
    with pytest.raises(LayoutError, match="no DINO file"):
        read_dino({"weight": torch.ones(3)}, "other")


def test_pictures_are_prepared_as_transformers_does():
    from transformers import CLIPImageProcessor

    generator = torch.Generator().manual_seed(4)
    frame = F.interpolate(torch.rand(1, 3, 9, 14, generator=generator), (120, 190), mode="bicubic").clamp(0, 1)[0].movedim(0, -1)
    frame = (frame * 255).round() / 255
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor((frame * 255).round().to(torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
    found = pictures.for_clip(frame[None], 32)
    assert found.shape == (1, 3, 32, 32)
    # bytes may round the other way: one step is 1/255/0.26
    assert (found - expected).abs().max() < 2.5 / 255 / 0.26
    assert (found - expected).abs().mean() < 0.5 / 255 / 0.26


def test_dino_pictures_have_their_own_crop_and_range():
    frame = torch.zeros(1, 64, 64, 3)
    frame[:, 8:56, 8:56] = 1.0
    found = pictures.for_dino(frame, 56)
    assert found.shape == (1, 3, 56, 56)
    white = (1 - torch.tensor(pictures.IMAGENET_MEAN)) / torch.tensor(pictures.IMAGENET_STD)
    assert torch.allclose(found[0, :, 28, 28], white, atol=1e-5)
    # a border of 8 of 64 pixels, of which the crop leaves 4 of 56
    assert (found[0, 0, 28] < 0).sum() == 8


# -- I3D: against TensorFlow's rule for padding, written with one convolution at a time


def tiny_i3d(classes=5):
    generator = torch.Generator().manual_seed(6)
    state = {}

    def unit(name, before, width, kernel):
        weight = torch.randn(width, before, *kernel, generator=generator)
        state[f"{name}.conv3d.weight"] = weight / math.sqrt(before * math.prod(kernel))
        state[f"{name}.bn.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bn.bias"] = 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bn.running_mean"] = 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bn.running_var"] = 0.02 + 0.3 * torch.rand(width, generator=generator)
        return width

    width = 3
    for name in ORDER:
        if name in STEM:
            side = int(name[-1])
            width = unit(name, width, 4, (side, side, side))
        elif isinstance(name, str):
            before = width
            for part, wide, kernel in zip(BRANCHES, (2, 2, 3, 2, 2, 1), (1, 1, 3, 1, 3, 1)):
                unit(f"{name}.{part}", {"b1b": 2, "b2b": 2}.get(part, before), wide, (kernel,) * 3)
            width = 2 + 3 + 2 + 1
    state["logits.conv3d.weight"] = torch.randn(classes, width, 1, 1, 1, generator=generator)
    state["logits.conv3d.bias"] = torch.randn(classes, generator=generator)
    return state


def tensorflow_same(x, kernel, stride):
    """Every place at which the window starts is a multiple of the stride; the frame is centred, the odd zero comes last."""
    for axis in range(3):
        length = x.shape[2 + axis]
        places = -(-length // stride[axis])
        total = max((places - 1) * stride[axis] + kernel[axis] - length, 0)
        before = torch.zeros_like(x.narrow(2 + axis, 0, 1)).repeat_interleave(total // 2, 2 + axis)
        after = torch.zeros_like(x.narrow(2 + axis, 0, 1)).repeat_interleave(total - total // 2, 2 + axis)
        x = torch.cat((before, x, after), 2 + axis)
    return x


def i3d_by_hand(state, clips):
    def unit(name, x, stride):
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(tensorflow_same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        scale = state[f"{name}.bn.weight"] / torch.sqrt(state[f"{name}.bn.running_var"] + 1e-3)
        shift = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp_min(0)

    def pool(x, kernel, stride):
        return F.max_pool3d(tensorflow_same(x, kernel, stride), kernel, stride)

    def mixed(name, x):
        three = (unit(f"{name}.b0", x, 1), unit(f"{name}.b1b", unit(f"{name}.b1a", x, 1), 1))
        last = unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)), 1)
        return torch.cat((*three, unit(f"{name}.b2b", unit(f"{name}.b2a", x, 1), 1), last), 1)

    x = pool(unit("Conv3d_1a_7x7", clips, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x, 1), 1), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("Mixed_3c", mixed("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(f"Mixed_4{letter}", x)
    x = mixed("Mixed_5c", mixed("Mixed_5b", pool(x, (2, 2, 2), (2, 2, 2))))
    # windows of 2 frames over the whole picture, then the mean over windows
    windows = torch.stack([x[:, :, start : start + 2].mean((2, 3, 4)) for start in range(x.shape[2] - 1)])
    weight, bias = state["logits.conv3d.weight"][:, :, 0, 0, 0], state["logits.conv3d.bias"]
    return (windows @ weight.T + bias).mean(0)


@pytest.mark.parametrize("frames", [10, 17])
def test_i3d_equals_the_network_written_by_hand(frames):
    state = tiny_i3d()
    clips = torch.rand(1, 3, frames, 224, 224, generator=torch.Generator().manual_seed(7)) * 2 - 1
    found, expected = read_i3d(state, "tiny")(clips), i3d_by_hand(state, clips)
    assert found.shape == (1, 5) and (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_i3d_files_that_are_none_are_refused():
    with pytest.raises(ValueError, match="other.pt is no I3D file"):
        read_i3d({"weight": torch.ones(3)}, "other.pt")
    state = tiny_i3d()
    del state["Mixed_4c.b1b.bn.bias"]
    with pytest.raises(ValueError, match="short.pt is cut short.*Mixed_4c.b1b.bn.bias"):
        read_i3d(state, "short.pt")


def test_clips_for_i3d_and_c3d_have_the_papers_sizes_and_ranges():
    clip = torch.zeros(12, 40, 60, 3)
    clip[..., 0] = 1.0
    found = pictures.for_i3d(clip)
    assert found.shape == (3, 12, 224, 224) and found[0].min() == 1 and found[1].max() == -1
    assert pictures.for_i3d(clip[:8]).shape[1] == 16, "I3D cannot take 8 frames"
    found = pictures.for_c3d(clip)
    assert found.shape == (3, 16, 112, 112) and found[0].min() == 255 and found[1].max() == 0
    found = pictures.for_c3d_script(clip)
    assert found.shape == (3, 16, 40, 60) and found.dtype == torch.uint8


def test_short_clips_are_slowed_down_evenly_and_long_ones_cut():
    numbered = torch.arange(8.0)[:, None, None, None]
    assert pictures.to_length(numbered, 16).flatten().tolist() == [n // 2 for n in range(16)]
    assert pictures.to_length(numbered, 5).flatten().tolist() == [0, 1, 2, 3, 4]


# -- C3D

LAST_POOL = -7


@pytest.fixture(scope="module")
def c3d_peer():
    """The network as a plain sequence of torch layers."""
    widths = (3, 2, 3, 4, 4, 3, 3, 2, 2)
    layers, pools = [], {0: (1, 2, 2), 1: 2, 3: 2, 5: 2}
    for number in range(8):
        layers += [Conv3d(widths[number], widths[number + 1], 3, padding=1), nn.ReLU()]
        if number in pools:
            layers.append(nn.MaxPool3d(pools[number], pools[number]))
    layers += [nn.MaxPool3d(2, 2), nn.Flatten()]
    layers += [Linear(2 * 16, 6), nn.ReLU(), Linear(6, 5), nn.ReLU(), Linear(5, 4)]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    ("layout", "colours", "mean"),
    [(PLAIN, [2, 1, 0], (90.0, 98.0, 102.0)), (OPENMMLAB, [0, 1, 2], (104.0, 117.0, 128.0))],
    ids=["plain", "openmmlab"],
)
def test_c3d_equals_a_plain_sequence_of_layers(c3d_peer, layout, colours, mean):
    with_weights = [layer for layer in c3d_peer if isinstance(layer, (nn.Conv3d, nn.Linear))]
    state = {}
    for name, layer in zip(layout.names.values(), with_weights):
        state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    clips = torch.rand(2, 3, 16, 112, 112, generator=torch.Generator().manual_seed(9)) * 255
    # Caffe's networks take blue first
    own = clips[:, colours] - torch.tensor(mean).reshape(1, 3, 1, 1, 1)
    # 7x7 with a border that never wins becomes 4x4.
    bordered = F.pad(c3d_peer[:LAST_POOL](own), (1, 1, 1, 1, 0, 0), value=-math.inf)
    expected = c3d_peer[LAST_POOL:](bordered)
    found = read_c3d(state, "tiny")(clips)
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_c3d_files_that_are_none_are_refused():
    with pytest.raises(ValueError, match="other.pt is no C3D file"):
        read_c3d({"weight": torch.ones(3)}, "other.pt")


# -- files


class Scripted(nn.Module):
    def forward(self, clips: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale and not resize and return_features
        return clips.mean((2, 3, 4))


def test_torchscript_needs_an_explicit_yes(tmp_path, caplog):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Scripted()).save(str(path))
    assert is_torchscript(path)
    with pytest.raises(ValueError, match="i3d_torchscript.pt is TorchScript.*allow_torchscript"):
        load.load_i3d(path, allow_torchscript=False)
    with caplog.at_level("WARNING", "magdiff"):
        encoder = load.load_i3d(path, allow_torchscript=True, place=lambda module: torch.device("cpu"))
    assert "code that this file brings along runs now" in caplog.text
    assert encoder.clips(torch.full((2, 3, 10, 4, 4), 0.5)).tolist() == [[0.5] * 3] * 2


def test_pickles_with_code_are_refused_and_wrapped_weights_found(tmp_path):
    class Anything:
        pass

    torch.save({"state_dict": {"module.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "wrapped.pth")
    assert list(read_tensors(tmp_path / "wrapped.pth")) == ["weight"]
    assert not is_torchscript(tmp_path / "wrapped.pth")
    torch.save({"weight": torch.ones(2), "object": Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"cannot read code.pth: it wants to build torch.nn"):
        read_tensors(tmp_path / "code.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="short.safetensors.*cut short"):
        read_tensors(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        read_tensors(tmp_path / "none.safetensors")


def test_the_record_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "abc.bin").write_bytes(b"abc")
    assert record_of(tmp_path / "abc.bin").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert record_of(tmp_path / "a.safetensors").name == "a.safetensors"
    assert json.dumps(record_of(tmp_path / "a.safetensors").sha256)
