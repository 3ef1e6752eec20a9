"""IP-Adapter for SD1.5: recognised, converted without a rest, refused with the reason, and equal to diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers_models import CONTEXT, FRAMES, HEADS_SD15, WIDTHS, random_latent, random_text, randomise, sd15_unet

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.weights.families import families_of, read_checkpoint
from magdiff_core.weights.ip_adapter import PLAIN, PLUS, read_ip_adapter

FULL_WIDTHS = (320, 640, 1280, 1280)
SITES = {
    # number in the file -> (layer of the base, level): diffusers counts down, up, middle; cross-attention is odd
    1: ("input_blocks.1.1", 0),
    3: ("input_blocks.2.1", 0),
    5: ("input_blocks.4.1", 1),
    7: ("input_blocks.5.1", 1),
    9: ("input_blocks.7.1", 2),
    11: ("input_blocks.8.1", 2),
    13: ("output_blocks.3.1", 2),
    15: ("output_blocks.4.1", 2),
    17: ("output_blocks.5.1", 2),
    19: ("output_blocks.6.1", 1),
    21: ("output_blocks.7.1", 1),
    23: ("output_blocks.8.1", 1),
    25: ("output_blocks.9.1", 0),
    27: ("output_blocks.10.1", 0),
    29: ("output_blocks.11.1", 0),
    31: ("middle_block.1", 3),
}


class Sizes:
    """Of one IP-Adapter: width of the text, of the pooled embedding and of the patches, and of the plus projection."""

    def __init__(self, widths, text, pooled, patches, plus, tokens_plus):
        self.widths, self.text, self.pooled = widths, text, pooled
        self.patches, self.plus, self.tokens_plus = patches, plus, tokens_plus


FULL = Sizes(FULL_WIDTHS, 768, 1024, 1280, 768, 16)
SMALL = Sizes(WIDTHS, CONTEXT, 24, 40, 128, 6)


def shapes(layout: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published file."""
    if layout == PLAIN:
        projection = {"proj.weight": (4 * sizes.text, sizes.pooled), "proj.bias": (4 * sizes.text,)}
        projection |= {"norm.weight": (sizes.text,), "norm.bias": (sizes.text,)}
    else:
        w = sizes.plus
        projection = {"latents": (1, sizes.tokens_plus, w), "proj_in.weight": (w, sizes.patches), "proj_in.bias": (w,)}
        for i in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                projection |= {f"layers.{i}.{norm}.weight": (w,), f"layers.{i}.{norm}.bias": (w,)}
            projection |= {f"layers.{i}.0.to_q.weight": (w, w), f"layers.{i}.0.to_kv.weight": (2 * w, w)}
            projection |= {f"layers.{i}.0.to_out.weight": (w, w)}
            projection |= {f"layers.{i}.1.1.weight": (4 * w, w), f"layers.{i}.1.3.weight": (w, 4 * w)}
        projection |= {"proj_out.weight": (sizes.text, w), "proj_out.bias": (sizes.text,)}
        projection |= {"norm_out.weight": (sizes.text,), "norm_out.bias": (sizes.text,)}
    found = {f"image_proj.{key}": shape for key, shape in projection.items()}
    for number, (_, level) in SITES.items():
        for name in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{number}.{name}.weight"] = (sizes.widths[level], sizes.text)
    return found


def meta(layout: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes(layout, FULL).items()}


def small(layout: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    weights = {}
    for key, shape in shapes(layout, SMALL).items():
        noise = torch.randn(shape, generator=generator)
        norm = "norm" in key or ".1.0." in key
        weights[key] = noise / shape[-1] ** 0.5 if len(shape) > 1 else 0.1 * noise + float(norm and key.endswith("weight"))
    return weights


def split(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The two parts of a .bin file."""
    parts: dict[str, dict] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    return parts


# --- full-size key lists ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "parameters"), [(PLAIN, 22_319_616), (PLUS, 19_169_280 + 29_918_208)])
def test_full_size_is_converted_without_a_rest(layout, parameters):
    weights = meta(layout)
    assert sum(value.numel() for value in weights.values()) == parameters
    assert [family.name for family in families_of(weights)] == ["IP-Adapter"]
    parts = read_ip_adapter(weights)
    assert parts.layout == layout and not parts.unet and not parts.unused
    alphas = [key for key in parts.adapter if ".alpha_" in key]
    assert len(alphas) == 32 and all(parts.adapter[key].tolist() == [1.0] for key in alphas)
    assert sum(value.numel() for key, value in parts.adapter.items() if key not in alphas) == parameters
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in parts.adapter.items()}
    encoder = parts.config.image_encoder
    assert (encoder.layer, encoder.width) == (("pooled", 1024) if layout == PLAIN else ("penultimate", 1280))
    assert encoder.channels == "rgb" and parts.config.image_tokens == "picture" and parts.config.negative_picture == "zero"
    assert parts.config.projector_heads == 12


def test_each_number_reaches_its_layer():
    weights = small(PLAIN)
    parts = read_ip_adapter(weights)
    for number, (layer, _) in SITES.items():
        stream = f"apa.{layer}.transformer_blocks.0"
        assert torch.equal(parts.adapter[f"{stream}.to_k_image.weight"], weights[f"ip_adapter.{number}.to_k_ip.weight"])
        assert torch.equal(parts.adapter[f"{stream}.to_v_image.weight"], weights[f"ip_adapter.{number}.to_v_ip.weight"])


# --- parity -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spatial():
    return randomise(sd15_unet(), seed=1)


def features(layout: str, pictures: int) -> torch.Tensor:
    """What the image encoder gives: `[pictures, L, width]`."""
    length, width = (1, SMALL.pooled) if layout == PLAIN else (9, SMALL.patches)
    return torch.randn(pictures, length, width, generator=torch.Generator().manual_seed(21))


def peer_rows(spatial, layout, weights, pictures, negative, texts, scale=1.0):
    """diffusers' UNet with the adapter, every frame with its own picture: rows of the positive and of the negative text."""
    import copy

    from peer_run import TIMESTEP

    peer = copy.deepcopy(spatial)
    peer._load_ip_adapter_weights([split(weights)], low_cpu_mem_usage=False)
    for processor in peer.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    rows = []
    with torch.no_grad():
        for text, images in zip(texts, (pictures, negative), strict=True):
            # [frames, pictures of a frame, (patches,) width]
            embeds = images.expand(FRAMES, -1, -1) if layout == PLAIN else images.expand(FRAMES, -1, -1)[:, None]
            options = {"added_cond_kwargs": {"image_embeds": [embeds]}}
            rows.append(peer(random_latent(), TIMESTEP, encoder_hidden_states=text.expand(FRAMES, -1, -1), **options).sample)
    return rows


def our_rows(spatial, layout, weights, tokens, texts, **sliders):
    from peer_run import base_model, ldm_names, predict, with_adapter

    from magdiff_core.alignment.apa import AlphaSettings
    from magdiff_core.host.conds import attach

    parts = read_ip_adapter(weights)
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    positive, negative = (
        attach([[text, {}]], negative=is_negative, tokens=tokens, alphas=AlphaSettings(**sliders))
        for text, is_negative in zip(texts, (False, True), strict=True)
    )
    return predict(model, random_latent(), positive, negative)


@pytest.mark.parametrize("layout", [PLAIN, PLUS])
@pytest.mark.parametrize("pictures", [1, FRAMES])
@pytest.mark.parametrize("alpha_image", [1.0, 0.6])
def test_parity(comfy_session, spatial, layout, pictures, alpha_image):
    from peer_run import check

    from magdiff_core.host.conds import SubjectTokens

    weights, texts = small(layout), (random_text(11), random_text(12))
    seen = features(layout, pictures + 1)
    if layout == PLAIN:
        seen[-1] = 0.0
    layer = "pooled" if layout == PLAIN else "penultimate"
    tokens = SubjectTokens({layer: seen[None]}, black_entry=False, negative_entry=True)
    ours = our_rows(spatial, layout, weights, tokens, texts, alpha_image=alpha_image)
    theirs = peer_rows(spatial, layout, weights, seen[:-1], seen[-1:], texts, alpha_image)
    for row, expected in zip(ours, theirs, strict=True):
        check(row, expected)


def test_parity_with_animatediff(comfy_session, spatial):
    """Motion modules and picture in one adapter, as Compose Adapter puts them together."""
    import copy

    import diffusers_models
    from diffusers import UNetMotionModel
    from peer_run import TIMESTEP, base_model, check, ldm_names, predict, with_adapter

    from magdiff_core.host.conds import SubjectTokens, attach
    from magdiff_core.weights.animatediff import read_animatediff
    from magdiff_core.weights.compose import IMAGE, TEMPORAL, Source, compose

    motion, picture = randomise(diffusers_models.motion_adapter(), seed=2), small(PLUS)
    sources = {
        part: Source(f"{read.layout}.safetensors", 0, read.adapter, read.config)
        for part, read in ((TEMPORAL, read_animatediff(motion.state_dict())), (IMAGE, read_ip_adapter(picture)))
    }
    composed = compose(sources)
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), composed.weights, composed.config)
    seen, texts = features(PLUS, 2), (random_text(11), random_text(12))
    tokens = SubjectTokens({"penultimate": seen[None]}, black_entry=False, negative_entry=True)
    rows = predict(model, random_latent(), *(attach([[t, {}]], negative=n, tokens=tokens) for t, n in zip(texts, (False, True))))

    peer = UNetMotionModel.from_unet2d(copy.deepcopy(spatial), motion).eval()
    peer._load_ip_adapter_weights([split(picture)], low_cpu_mem_usage=False)
    for row, text, image in zip(rows, texts, seen, strict=True):
        options = {"added_cond_kwargs": {"image_embeds": [image[None, None]]}}
        check(row, diffusers_models.predict(peer, random_latent(), TIMESTEP, text, **options))


def test_the_picture_acts(comfy_session, spatial):
    from peer_run import difference

    from magdiff_core.host.conds import SubjectTokens

    texts, weights = (random_text(11), random_text(12)), small(PLUS)
    tokens = SubjectTokens({"penultimate": features(PLUS, 2)[None]}, black_entry=False, negative_entry=True)
    with_picture, without = (our_rows(spatial, PLUS, weights, tokens, texts, alpha_image=a)[0] for a in (1.0, 0.0))
    assert difference(with_picture, without) > 0.05


# --- from picture to tokens -------------------------------------------------------------------------------------------------

ENCODER = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": SMALL.patches,
    "image_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": SMALL.pooled,
}


@pytest.fixture(scope="module")
def encoders(comfy_session):
    """ComfyUI's image encoder and transformers' with the same weights."""
    from comfy.clip_vision import ClipVisionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {key: value for key, value in ENCODER.items() if key != "model_type"}
    peer = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), seed=4)
    # ComfyUI holds the weights in half precision.
    peer.load_state_dict({key: value.half().to(value) for key, value in peer.state_dict().items()})
    with torch.inference_mode(False):
        ours = ClipVisionModel(ENCODER)
        missing, _ = ours.load_sd({key: value.clone() for key, value in peer.state_dict().items()})
    assert not missing
    return ours, peer


@pytest.mark.parametrize("layout", [PLAIN, PLUS])
def test_encode_subject_tokens(comfy_session, spatial, encoders, layout):
    """The hidden layer that the kind reads, without a black entry, and a negative as in IP-Adapter's own code."""
    from peer_run import base_model, ldm_names, with_adapter

    from magdiff_core.host.encode import encode_subject_tokens, subject_tokens

    ours, peer = encoders
    parts = read_ip_adapter(small(layout))
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(8)).mul(255).round().div(255)
    output = encode_subject_tokens(model, ours, picture)
    tokens = subject_tokens(output)
    assert tokens.negative_entry and not tokens.black_entry and tokens.subject_entries == 1

    normed = (picture.movedim(-1, 1) - torch.tensor(ours.image_mean).view(3, 1, 1)) / torch.tensor(ours.image_std).view(3, 1, 1)
    with torch.no_grad():
        seen, zero = (peer(pixels, output_hidden_states=True) for pixels in (normed, torch.zeros_like(normed)))
    if layout == PLAIN:
        expected = torch.stack((seen.image_embeds, torch.zeros_like(seen.image_embeds)), dim=1)[:, :, None]
    else:
        expected = torch.stack((seen.hidden_states[-2], zero.hidden_states[-2]), dim=1)
    torch.testing.assert_close(tokens.layers[parts.config.image_encoder.layer], expected, rtol=1e-4, atol=1e-4)


def test_another_image_encoder_is_refused(comfy_session, spatial, encoders):
    from peer_run import base_model, ldm_names, with_adapter

    from magdiff_core.host.encode import encode_subject_tokens

    weights = {**small(PLAIN), "image_proj.proj.weight": torch.ones(4 * SMALL.text, 1280)}
    parts = read_ip_adapter(weights)
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    with pytest.raises(ValueError, match="24 wide .*trained with 1280 .CLIP ViT-bigG"):
        encode_subject_tokens(model, encoders[0], torch.zeros(1, 32, 32, 3))


def test_a_plain_clip_vision_output_is_taken_and_said(comfy_session, spatial, encoders, caplog):
    """From core's CLIP Vision Encode: the negative then reads the same picture."""
    from peer_run import base_model, ldm_names, predict, with_adapter

    from magdiff_core.host.conds import attach
    from magdiff_core.host.encode import subject_tokens

    parts = read_ip_adapter(small(PLUS))
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)
    tokens = subject_tokens(encoders[0].encode_image(torch.zeros(1, 32, 32, 3)))
    rows = predict(model, random_latent(), *(attach([[random_text(11), {}]], negative=n, tokens=tokens) for n in (False, True)))
    # Rows of one batch: threads share it out, so the last bits may differ.
    assert (rows[0] - rows[1]).abs().max() < 1e-5 * rows[0].abs().max()
    assert "Encode Subject Tokens" in caplog.text


# --- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [PLAIN, PLUS])
@pytest.mark.parametrize("name", ["any name.safetensors", "any name.bin"])
def test_files(comfy_session, tmp_path, layout, name):
    from safetensors.torch import save_file

    from magdiff_core.host.adapter_file import load_adapter_file

    weights, path = small(layout), tmp_path / name
    if name.endswith("bin"):
        torch.save(split(weights), path)
    else:
        save_file(weights, path)
    loaded = load_adapter_file(str(path))
    assert loaded.config.trained_from == layout and len(loaded.patcher.model.apa.sites) == 16


# --- refused ----------------------------------------------------------------------------------------------------------------


def without(weights: dict, *starts: str) -> dict:
    return {key: value for key, value in weights.items() if not key.startswith(starts)}


@pytest.mark.parametrize(
    ("layout", "change", "words"),
    [
        (PLAIN, lambda w: without(w, "image_proj."), ("image projection", "missing")),
        (PLAIN, lambda w: without(w, "ip_adapter."), ("32 of its 36 weights are missing", "input_blocks.1.1")),
        (PLAIN, lambda w: without(w, "ip_adapter.31.to_v_ip"), ("1 of its", "middle_block.1")),
        (PLUS, lambda w: without(w, "image_proj.layers.2.0.to_kv"), ("1 of its", "projector.layers.2.0.to_kv.weight")),
        (PLUS, lambda w: without(w, "image_proj.proj_out"), ("2 of its", "projector.proj_out.weight")),
        (PLAIN, lambda w: {**w, "ip_adapter.1.to_q_lora.down.weight": torch.ones(1)}, ("1 of its", "FaceID")),
        (PLAIN, lambda w: {**w, "something.else": torch.ones(1)}, ("1 of its", "something.else")),
        (PLAIN, lambda w: {**w, **{f"ip_adapter.{n}.to_k_ip.weight": torch.ones(1) for n in range(1, 141, 2)}}, ("SDXL", "70")),
        (PLUS, lambda w: {**without(w, "image_proj."), "image_proj.proj.3.weight": torch.ones(1)}, ("full-face",)),
        (PLUS, lambda w: {**without(w, "image_proj."), "image_proj.proj.0.weight": torch.ones(1)}, ("FaceID",)),
    ],
)
def test_partial_and_other_files_are_refused(layout, change, words):
    with pytest.raises(ValueError, match="IP-Adapter") as error:
        read_ip_adapter(change(small(layout)))
    for word in (*words, "ip-adapter-plus_sd15"):
        assert word in str(error.value)


def test_a_file_of_two_families_is_refused():
    from diffusers_models import motion_adapter, original_motion_keys

    with torch.device("meta"):
        motion = original_motion_keys(motion_adapter(FULL_WIDTHS).state_dict())
    with pytest.raises(ValueError, match="AnimateDiff and of IP-Adapter"):
        read_checkpoint({**motion, **meta(PLAIN)})
