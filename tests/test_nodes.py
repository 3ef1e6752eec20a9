"""The nodes that put a subject on conditioning and sample, called as ComfyUI calls them, with tiny stock encoders."""

from __future__ import annotations

import pytest
import torch

CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": 24,
    "image_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 16,
}
AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def clip_vision(rig):
    from comfy.clip_vision import ClipVisionModel
    from tiny import randomise

    torch.manual_seed(1)
    with torch.inference_mode(False):
        encoder = ClipVisionModel(CLIP_VISION)
        randomise(encoder.model)
    return encoder


@pytest.fixture(scope="module")
def vae(rig):
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from tiny import randomise

    torch.manual_seed(2)
    with torch.inference_mode(False):
        network = AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4)
        randomise(network)
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": {"ddconfig": AUTOENCODER, "embed_dim": 4}})
    vae.throw_exception_if_invalid()
    return vae


@pytest.fixture(scope="module")
def model(rig):
    return rig.adapted(rig.tiny_model())


@pytest.fixture
def call(pack):
    """Runs a node by its id with its defaults, as a graph would."""

    def call(node_id, **inputs):
        schema = pack[node_id].GET_SCHEMA()
        defaults = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
        defaults = {name: value for name, value in defaults.items() if name not in inputs}
        return pack[node_id].execute(**defaults, **inputs).args

    return call


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def only(conditioning) -> dict:
    """Our payloads of a conditioning with one entry."""
    [[_, extras]] = conditioning
    return {name: cond.cond for name, cond in extras["model_conds"].items()}


class TestEncodeSubjectTokens:
    def encode(self, call, model, clip_vision, subject):
        return call("MagDiffEncodeSubjectTokens", model=model, clip_vision=clip_vision, subject=subject)[0]

    @pytest.mark.parametrize("frames", [1, 5, 20])
    def test_one_entry_a_frame_and_the_black_one(self, rig, call, model, clip_vision, frames):
        subject = picture(frames, 32, 48, 3)
        output = self.encode(call, model, clip_vision, subject)
        assert output.last_hidden_state.shape == (frames + 1, 17, 24)
        # The default adapter wants BGR and a centre crop.
        for i, frame in enumerate((*subject, torch.zeros(32, 48, 3))):
            alone = clip_vision.encode_image(frame[None].flip(-1), crop=True)
            for name in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
                assert torch.allclose(output[name][i], alone[name][0], atol=1e-5), name

    def test_the_adapter_tells_crop_and_channel_order(self, rig, call, clip_vision):
        from dataclasses import replace

        from magdiff_core.host.adapter_file import adapter_patcher

        base, subject = rig.tiny_model(), picture(1, 32, 64, 3)
        seen = set()
        for crop in (True, False):
            for channels in ("rgb", "bgr"):
                config = rig.config()
                config = replace(config, image_encoder=replace(config.image_encoder, crop=crop, channels=channels))
                loaded = adapter_patcher(rig.adapter_weights(base), config)
                output = self.encode(call, rig.apply_adapter(base, loaded, rig.PartStrengths()), clip_vision, subject)
                pixels = subject if channels == "rgb" else subject.flip(-1)
                expected = clip_vision.encode_image(pixels, crop=crop).last_hidden_state
                assert torch.allclose(output.last_hidden_state[:1], expected, atol=1e-5)
                seen.add(round(expected.sum().item(), 3))
        assert len(seen) == 4

    def test_all_parts_off_still_tells_how_to_encode(self, rig, call, clip_vision):
        off = rig.adapted(rig.tiny_model(), 0.0, 0.0, 0.0, 0.0)
        assert self.encode(call, off, clip_vision, picture(1, 32, 32, 3)).last_hidden_state.shape[0] == 2

    def test_grey_and_transparent_subjects(self, call, model, clip_vision):
        grey = picture(1, 32, 32, 1)
        same = self.encode(call, model, clip_vision, grey.expand(-1, -1, -1, 3))
        assert torch.equal(self.encode(call, model, clip_vision, grey).last_hidden_state, same.last_hidden_state)
        # What is transparent is no subject, so it is black.
        colours, alpha = picture(1, 32, 32, 3, seed=1), picture(1, 32, 32, 1, seed=2).round()
        cut_out = self.encode(call, model, clip_vision, torch.cat((colours, alpha), -1))
        on_black = self.encode(call, model, clip_vision, colours * alpha)
        assert torch.equal(cut_out.last_hidden_state, on_black.last_hidden_state)

    def test_errors(self, rig, call, model, clip_vision):
        good = picture(1, 32, 32, 3)
        broken = good.clone()
        broken[0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="subject holds 1 values that are NaN"):
            self.encode(call, model, clip_vision, broken)
        with pytest.raises(ValueError, match=r"subject has shape \[1, 32, 32, 2\].*height, width, 3"):
            self.encode(call, model, clip_vision, good[..., :2])
        with pytest.raises(ValueError, match="no MagDiff adapter.*Apply MagDiff Adapter"):
            self.encode(call, rig.tiny_model(), clip_vision, good)
        base = rig.tiny_model()
        weights = {k: v for k, v in rig.adapter_weights(base).items() if not k.startswith("apa.")}
        bare = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        with pytest.raises(ValueError, match="no image stream"):
            self.encode(call, bare, clip_vision, good)

    def test_an_encoder_of_another_width(self, rig, call, model):
        from comfy.clip_vision import ClipVisionModel

        other = ClipVisionModel({**CLIP_VISION, "hidden_size": 32})
        with pytest.raises(ValueError, match="tokens 32 wide.*trained with 24.*load that image encoder"):
            self.encode(call, model, other, picture(1, 32, 32, 3))

    def test_interruption_stops_between_chunks(self, call, model, clip_vision):
        import comfy.model_management

        comfy.model_management.interrupt_current_processing(True)
        try:
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                self.encode(call, model, clip_vision, picture(20, 32, 32, 3))
        finally:
            comfy.model_management.interrupt_current_processing(False)


class TestAPAConditioning:
    def test_it_only_attaches(self, rig, call, model, clip_vision):
        output = call("MagDiffEncodeSubjectTokens", model=model, clip_vision=clip_vision, subject=picture(1, 32, 32, 3))[0]
        positive, negative = rig.prompts()
        with rig.calls_of(clip_vision.model, *model.get_additional_models_with_key("magdiff")[0].model.modules()) as counts:
            out = call(
                "MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=output,
                alpha_text=0.5, alpha_image=2.0, start_percent=0.1, end_percent=0.9,
            )  # fmt: skip
        assert not any(counts)
        assert positive[0][1] == negative[0][1] == {}
        for conditioning, source in zip(out, (positive, negative), strict=True):
            payload = only(conditioning)
            assert conditioning[0][0] is source[0][0]
            assert vars(payload["magdiff_alphas"]) == vars(rig.AlphaSettings(0.5, 2.0, 0.1, 0.9))
            assert payload["magdiff_tokens"].black_entry
            assert torch.equal(payload["magdiff_tokens"].layers["last"][0], output.last_hidden_state)
        assert only(out[0])["magdiff_tokens"] is only(out[1])["magdiff_tokens"]

    def test_cores_own_clip_vision_encode(self, rig, call, clip_vision):
        import nodes

        output = nodes.CLIPVisionEncode().encode(clip_vision, picture(1, 32, 32, 3), "none")[0]
        positive, negative = rig.prompts()
        out = call("MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=output)
        assert not only(out[0])["magdiff_tokens"].black_entry

    @pytest.mark.parametrize("alphas", [(-1.0, 1.0), (float("nan"), 1.0), (0.0, 0.0)])
    def test_impossible_sliders(self, rig, call, clip_vision, alphas):
        import nodes

        output = nodes.CLIPVisionEncode().encode(clip_vision, picture(1, 32, 32, 3), "none")[0]
        positive, negative = rig.prompts()
        with pytest.raises(ValueError, match="alpha_text"):
            call(
                "MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=output,
                alpha_text=alphas[0], alpha_image=alphas[1],
            )  # fmt: skip


class TestHFAPyramidEncode:
    def encode(self, rig, call, vae, subject, mode="generate", width=64, height=64, frames=4, **inputs):
        positive, negative = rig.prompts()
        return call(
            "MagDiffHFAPyramidEncode", positive=positive, negative=negative, vae=vae, subject=subject, mode=mode,
            width=width, height=height, frames=frames, **inputs,
        )  # fmt: skip

    def test_generation(self, rig, call, vae):
        subject = picture(1, 64, 96, 3)
        positive, negative, latent = self.encode(rig, call, vae, subject, width=96, height=64, frames=6)
        assert latent["samples"].shape == (6, 4, 8, 12) and not latent["samples"].any()
        latents = only(positive)["magdiff_latents"]
        assert latents is only(negative)["magdiff_latents"]
        assert (latents.frames, latents.mode) == (6, "generate")
        sizes = [(8, 12), (10, 15), (12, 18)]
        for level, (height, width) in zip(latents.levels, sizes, strict=True):
            assert level.shape == (1, 2, 4, height, width)
            pixels = torch.nn.functional.interpolate(
                subject.movedim(-1, 1), size=(8 * height, 8 * width), mode="bilinear", antialias=True
            ).movedim(1, -1)
            # The mode of the autoencoder's distribution, unscaled; then the black frame. In one batch: the norms of the
            # autoencoder blow up the rounding of a picture without any variance, which depends on the batch.
            assert torch.allclose(level[0], vae.encode(torch.cat((pixels, torch.zeros_like(pixels)))), atol=1e-4)

    def test_editing(self, rig, call, vae):
        subject = picture(3, 64, 48, 3)
        positive, _, latent = self.encode(rig, call, vae, subject, mode="edit", width=16, height=16, frames=99)
        assert latent["samples"].shape == (3, 4, 8, 6)
        latents = only(positive)["magdiff_latents"]
        assert (latents.frames, latents.mode) == (3, "edit")
        assert [level.shape[1:] for level in latents.levels] == [(3, 4, 8, 6), (3, 4, 10, 8), (3, 4, 12, 9)]
        assert torch.allclose(latents.levels[0][0], vae.encode(subject), atol=1e-4)

    @pytest.mark.parametrize("fit_mode", ["crop", "pad", "stretch"])
    def test_a_picture_of_another_shape_is_fitted(self, rig, call, vae, fit_mode):
        from magdiff_core.alignment.hfa import fit

        subject = picture(1, 50, 90, 3)
        positive, *_ = self.encode(rig, call, vae, subject, fit=fit_mode)
        expected = vae.encode(fit(subject, 64, 64, fit_mode))
        assert torch.allclose(only(positive)["magdiff_latents"].levels[0][0, :1], expected, atol=1e-4)

    def test_one_frame(self, rig, call, vae):
        for mode in ("generate", "edit"):
            positive, _, latent = self.encode(rig, call, vae, picture(1, 64, 64, 3), mode=mode, frames=1)
            assert latent["samples"].shape[0] == only(positive)["magdiff_latents"].levels[0].shape[1] == 1

    def test_grey_and_transparent_subjects(self, rig, call, vae):
        colours, alpha = picture(1, 64, 64, 3), picture(1, 64, 64, 1, seed=2).round()

        def lowest(subject):
            return only(self.encode(rig, call, vae, subject)[0])["magdiff_latents"].levels[0]

        assert torch.equal(lowest(torch.cat((colours, alpha), -1)), lowest(colours * alpha))
        assert torch.equal(lowest(alpha), lowest(alpha.expand(-1, -1, -1, 3)))

    @pytest.mark.parametrize(("side", "name", "way_out"), [(60, "width is 60", "use 56 or 64"), (12, "width is 12", "use 8 or 16")])
    def test_sizes_that_do_not_divide(self, rig, call, vae, side, name, way_out):
        with rig.calls_of(vae.first_stage_model.encoder) as counts, pytest.raises(ValueError) as error:
            self.encode(rig, call, vae, picture(1, 64, 64, 3), width=side)
        assert name in str(error.value) and way_out in str(error.value) and "multiple of 8" in str(error.value)
        with rig.calls_of(vae.first_stage_model.encoder) as more, pytest.raises(ValueError, match="height is 60.*56 or 64"):
            self.encode(rig, call, vae, picture(2, 60, 64, 3), mode="edit")
        assert counts == more == [0]

    def test_errors(self, rig, call, vae):
        with pytest.raises(ValueError, match="subject has 3 pictures, mode generate takes one.*mode edit"):
            self.encode(rig, call, vae, picture(3, 64, 64, 3))
        broken = picture(1, 64, 64, 3)
        broken[0, 5, 5] = float("inf")
        with pytest.raises(ValueError, match="subject holds 3 values that are NaN or infinite"):
            self.encode(rig, call, vae, broken)

    def test_a_video_autoencoder(self, rig, call, vae, monkeypatch):
        monkeypatch.setattr(vae, "latent_dim", 3)
        with pytest.raises(ValueError, match="video VAE.*picture VAE"):
            self.encode(rig, call, vae, picture(1, 64, 64, 3))


@pytest.mark.parametrize("mode", ["generate", "edit"])
def test_the_whole_chain(rig, call, model, clip_vision, vae, mode):
    """Subject -> tokens -> sliders -> pyramid -> sampler; the order of the two conditioning nodes does not matter."""
    frames = 4
    subject = picture(1 if mode == "generate" else frames, 64, 64, 3)
    tokens = call("MagDiffEncodeSubjectTokens", model=model, clip_vision=clip_vision, subject=subject)[0]
    pyramid = {"vae": vae, "subject": subject, "mode": mode, "width": 64, "height": 64, "frames": frames}
    positive, negative = rig.prompts()

    first = call("MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=tokens)
    *one_way, latent = call("MagDiffHFAPyramidEncode", positive=first[0], negative=first[1], **pyramid)
    *first, _ = call("MagDiffHFAPyramidEncode", positive=positive, negative=negative, **pyramid)
    other_way = call("MagDiffAPAConditioning", positive=first[0], negative=first[1], clip_vision_output=tokens)

    def sample(pair, **changes):
        settings = {"model": model, "latent_image": latent, "seed": 3, "steps": 2, **changes}
        return call("MagDiffSampler", positive=pair[0], negative=pair[1], **settings)[0]["samples"]

    out = sample(one_way)
    assert out.shape == (frames, 4, 8, 8) and torch.isfinite(out).all()
    assert torch.equal(sample(other_way), out)
    assert not torch.equal(sample(one_way, seed=4), out)
    assert rig.difference(sample((positive, negative)), out) > 1e-3
    # Partial denoise starts from the latent that is given.
    start = {"samples": rig.random(frames, 4, 8, 8, seed=9)}
    kept = sample(one_way, latent_image=start, denoise=0.5)
    assert rig.difference(kept, sample(one_way, latent_image=start)) > 1e-3
    with pytest.raises(ValueError, match="5 frames"):
        sample(one_way, latent_image={"samples": torch.zeros(5, 4, 8, 8)})


def test_apply_node_loads_a_file_of_the_models_folder(rig, call, tmp_path, monkeypatch):
    import folder_paths
    from safetensors.torch import save_file

    base = rig.tiny_model()
    save_file(rig.adapter_weights(base), str(tmp_path / "mine.safetensors"), metadata=rig.config().to_metadata())
    folder_paths.add_model_folder_path("magdiff", str(tmp_path))
    assert "mine.safetensors" in folder_paths.get_filename_list("magdiff")
    model = call("MagDiffApplyAdapter", model=base, adapter="mine.safetensors", temporal_strength=0.5)[0]
    expected = rig.run(rig.adapted(base, temporal=0.5), *rig.wired())
    assert torch.equal(rig.run(model, *rig.wired()), expected)
    with pytest.raises(ValueError, match="strength of image_stream is 2"):
        call("MagDiffApplyAdapter", model=base, adapter="mine.safetensors", image_strength=2.0)
    with pytest.raises(FileNotFoundError):
        call("MagDiffApplyAdapter", model=base, adapter="other.safetensors")


@pytest.mark.parametrize("missing", ["model", "clip", "vae", "clip_vision"])
def test_a_part_that_a_checkpoint_lacks_blocks_only_its_output(pack, monkeypatch, missing):
    import sys
    from types import SimpleNamespace

    from comfy_execution.graph_utils import ExecutionBlocker

    module = sys.modules[pack["MagDiffLoadCheckpoint"].__module__]
    parts = {name: None if name == missing else object() for name in ("model", "clip", "vae", "clip_vision")}
    monkeypatch.setattr(module, "find_checkpoint", lambda name: name)
    asked = []
    monkeypatch.setattr(
        module, "load_checkpoint", lambda path, variant=None: asked.append((path, variant)) or SimpleNamespace(**parts)
    )
    outputs = pack["MagDiffLoadCheckpoint"].execute("some.pth").args
    pack["MagDiffLoadCheckpoint"].execute("some.pth", "DynamiCrafter-1024")
    assert asked == [("some.pth", None), ("some.pth", "DynamiCrafter-1024")]
    for (name, part), output in zip(parts.items(), outputs, strict=True):
        if name == missing:
            assert isinstance(output, ExecutionBlocker)
            assert f"some.pth holds no {missing}: use Load" in output.message
        else:
            assert output is part


def test_model_folders_are_registered_beside_those_of_the_user(pack, tmp_path):
    import folder_paths

    from magdiff_core.host.folders import PACK_MODELS

    paths, extensions = folder_paths.folder_names_and_paths["magdiff"]
    assert str(PACK_MODELS) in paths and extensions >= {".safetensors", ".pth"}
    assert paths[0].endswith("magdiff") and paths[0] != str(PACK_MODELS)


EXPECTED = {
    "MagDiffLoadCheckpoint": ("Load MagDiff Checkpoint", "MagDiff/loaders"),
    "MagDiffApplyAdapter": ("Apply MagDiff Adapter", "MagDiff/loaders"),
    "MagDiffEncodeSubjectTokens": ("Encode Subject Tokens", "MagDiff/conditioning"),
    "MagDiffAPAConditioning": ("APA Conditioning", "MagDiff/conditioning"),
    "MagDiffHFAPyramidEncode": ("HFA Pyramid Encode", "MagDiff/conditioning"),
    "MagDiffSampler": ("MagDiff Sampler", "MagDiff/sampling"),
    "MagDiffSubjectSegment": ("Subject Segment", "MagDiff/subject"),
    "MagDiffKeepRegion": ("Keep Region", "MagDiff/sampling"),
}


@pytest.mark.parametrize("node_id", EXPECTED)
def test_every_node_says_what_it_is(pack, node_id):
    """Frozen names, words to find it by, a tooltip on every input and output, masks that are not called `mask`."""
    schema = pack[node_id].GET_SCHEMA()
    assert (schema.display_name, schema.category) == EXPECTED[node_id]
    assert schema.description and len(schema.search_aliases) >= 3
    for part in (*schema.inputs, *schema.outputs):
        assert part.tooltip and len(part.tooltip) > 8, part.id
        assert part.id != "mask"
    assert all(output.id for output in schema.outputs)


def test_no_node_is_left_out(pack):
    assert set(pack) >= set(EXPECTED)


def test_defaults_are_those_of_the_paper(pack):
    defaults = {i.id: getattr(i, "default", None) for i in pack["MagDiffSampler"].GET_SCHEMA().inputs}
    assert (defaults["steps"], defaults["cfg"], defaults["denoise"]) == (50, 7.5, 1.0)
    defaults = {i.id: getattr(i, "default", None) for i in pack["MagDiffAPAConditioning"].GET_SCHEMA().inputs}
    assert (defaults["alpha_text"], defaults["alpha_image"], defaults["mode"]) == (1.0, 1.0, "adaptive")


def test_only_the_two_sliders_of_apa_are_in_sight(pack):
    inputs = {i.id: i for i in pack["MagDiffAPAConditioning"].GET_SCHEMA().inputs}
    assert [name for name in inputs if inputs[name].advanced] == ["start_percent", "end_percent", "mode"]
