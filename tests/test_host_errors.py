"""What cannot work is refused before sampling, with the input, the numbers and the way out."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch


def refused_run(rig, model, positive, negative, *words, **options) -> None:
    """The run raises ValueError with all `words`, and neither a load nor the UNet was reached."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    with rig.unet_calls(model) as calls, pytest.raises(ValueError) as error:
        rig.run(model, positive, negative, **options)
    assert not calls and not comfy.model_management.current_loaded_models
    for word in words:
        assert str(word) in str(error.value), (word, str(error.value))


def refused_apply(rig, model, loaded, *words, **strengths) -> None:
    with pytest.raises(ValueError) as error:
        rig.apply_adapter(model, loaded, rig.PartStrengths(**strengths))
    for word in words:
        assert str(word) in str(error.value), (word, str(error.value))


class TestWrongBase:
    def test_not_a_unet(self, rig, base):
        class Transformer(torch.nn.Linear):
            pass

        model = rig.tiny_model()
        model.model.diffusion_model = Transformer(2, 2)
        refused_apply(rig, model, rig.adapter(base), "Transformer", "Stable Diffusion 1.5 or 2.1")

    def test_a_video_unet_with_temporal_layers_of_its_own(self, rig, base):
        video = rig.tiny_model(
            use_temporal_resblock=True, use_temporal_attention=True, video_kernel_size=[3, 1, 1],
            extra_ff_mix_layer=True, use_spatial_context=True, merge_strategy="learned_with_images",
        )  # fmt: skip
        refused_apply(rig, video, rig.adapter(base), "Stable Video Diffusion", "SD1.5 or SD2.1")

    def test_other_widths(self, rig, base):
        wide = rig.tiny_model(model_channels=64)
        for part, width in (("temporal.conv", 32), ("temporal.attn", 32), ("apa", 32), ("hfa", 32)):
            weights = {k: v for k, v in rig.adapter_weights(base).items() if k.startswith(part)}
            refused_apply(rig, wide, rig.adapter(base, weights, base="SD2.1"), f"is {width} wide, the model 64", "Load the base")

    def test_missing_sites(self, rig, base):
        flat = rig.tiny_model(transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1])
        for part in ("temporal.attn", "apa"):
            weights = {k: v for k, v in rig.adapter_weights(base).items() if k.startswith(part)}
            refused_apply(rig, flat, rig.adapter(base, weights), "weights for input_blocks.1.1.transformer_blocks.0", "lacks")

    @pytest.mark.parametrize(("of_adapter", "of_model"), [("eps", "v"), ("v", "eps")])
    def test_another_prediction_type(self, rig, of_adapter, of_model):
        model = rig.tiny_model(of_model)
        loaded = rig.adapter(model, prediction=of_adapter, base="the right base")
        words = (f"trained for {of_adapter} prediction", f"predicts {of_model}", "load the right base")
        refused_apply(rig, model, loaded, *words)
        rig.apply_adapter(rig.tiny_model(of_adapter), loaded, rig.PartStrengths())

    def test_model_sampling_discrete_decides(self, rig):
        """Core took a v checkpoint for eps, the user put it right: the adapter for v fits, the one for eps does not."""
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        model = ModelSamplingDiscrete().patch(rig.tiny_model("eps"), "v_prediction", False)[0]
        refused_apply(rig, model, rig.adapter(model, prediction="eps"), "predicts v")
        right = rig.apply_adapter(model, rig.adapter(model, prediction="v"), rig.PartStrengths())
        born = rig.apply_adapter(rig.tiny_model("v"), rig.adapter(model, prediction="v"), rig.PartStrengths())
        assert torch.equal(rig.run(right, *rig.wired()), rig.run(born, *rig.wired()))

    def test_another_latent_scale(self, rig, base):
        refused_apply(rig, base, rig.adapter(base, latent_scale=0.13025), 0.13025, 0.18215)

    def test_differences_to_weights_of_another_shape_or_place(self, rig, base):
        for key, shape in (("out.2.bias", (8,)), ("input_blocks.99.0.weight", (1,))):
            weights = {**rig.adapter_weights(base), f"base.{key}": torch.zeros(shape)}
            refused_apply(rig, base, rig.adapter(base, weights, base="that base"), key, f"{shape}", "load that base")


class TestOtherPacks:
    @pytest.mark.parametrize("kind", ["ResBlock", "SpatialTransformer", "TimestepBlock"])
    def test_a_handler_on_the_same_layers(self, rig, base, kind):
        import comfy.ldm.modules.attention as attention
        import comfy.ldm.modules.diffusionmodules.openaimodel as unet

        layer = getattr(unet, kind, None) or getattr(attention, kind)
        model = base.clone()
        model.set_model_forward_timestep_embed_patch((layer, lambda *args: args[1]))
        refused_apply(rig, model, rig.adapter(base), kind, __name__.rsplit(".")[-1], "without it")
        # Without the temporal part we need none of these layers.
        rig.apply_adapter(model, rig.adapter(base), rig.PartStrengths(temporal=0.0))

    def test_a_handler_on_other_layers_is_kept(self, rig, base):
        from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample

        called = []

        def theirs(layer, x, *_):
            called.append(1)
            return layer(x)

        model = base.clone()
        model.set_model_forward_timestep_embed_patch((Downsample, theirs))
        expected = rig.run(rig.adapted(base), *rig.wired())
        assert torch.equal(rig.run(rig.adapted(model), *rig.wired()), expected) and called


class TestCounts:
    def test_tokens_of_another_number_of_frames(self, rig, adapted):
        payload = {**rig.subject(mode="edit"), "tokens": rig.tokens(3)}
        refused_run(rig, adapted, *rig.wired(**payload), "clip_vision_output holds 3", "4 frames", "encode 1 picture")

    def test_latents_of_another_number_of_frames(self, rig, adapted):
        for mode, source in (("generate", "frames widget"), ("edit", "frames of the subject clip")):
            payload = {"latents": rig.latents(6, mode)}
            refused_run(rig, adapted, *rig.wired(**payload), "LATENT has 4 frames", "conditioning 6", source)

    def test_a_batch_of_two_clips(self, rig, adapted):
        refused_run(rig, adapted, *rig.wired(), "LATENT has 8 frames", "One run makes one clip", frames=8)

    def test_a_mismatch_on_the_negative_side_only(self, rig, adapted):
        positive, _ = rig.wired()
        _, negative = rig.wired(**rig.subject(6))
        refused_run(rig, adapted, positive, negative, "LATENT has 4 frames", "conditioning 6")

    def test_a_mismatch_in_the_second_of_two_prompts(self, rig, adapted):
        positive, negative = rig.wired()
        other, _ = rig.wired(**rig.subject(6))
        refused_run(rig, adapted, positive + other, negative, "conditioning 6")

    def test_another_size(self, rig, adapted):
        refused_run(rig, adapted, *rig.wired(), "LATENT is 10 x 10", "subject latent 8 x 8", side=10)

    def test_parts_that_are_off_are_not_checked(self, rig, base):
        payload = {"tokens": rig.tokens(3), "latents": rig.latents(6)}
        off = rig.adapted(base, image_stream=0.0, pyramid=0.0)
        assert torch.isfinite(rig.run(off, *rig.wired(**payload))).all()

    def test_odd_latent_sizes_work(self, rig, adapted):
        payload = {**rig.subject(), "latents": rig.latents(side=9)}
        assert torch.isfinite(rig.run(adapted, *rig.wired(**payload), side=9)).all()

    def test_one_frame_works(self, rig, base, adapted):
        for mode in ("generate", "edit"):
            for black in (True, False):
                payload = {**rig.subject(1, mode), "tokens": rig.tokens(1, black=black)}
                out = rig.run(adapted, *rig.wired(**payload), frames=1)
                assert out.shape[0] == 1 and torch.isfinite(out).all()

    def test_tokens_of_cores_own_node_work(self, rig, adapted):
        """No black entry: one picture for the whole clip, or one a frame."""
        for entries in (1, rig.FRAMES):
            payload = {**rig.subject(), "tokens": rig.tokens(entries, black=False)}
            assert torch.isfinite(rig.run(adapted, *rig.wired(**payload))).all()


class TestEncoder:
    def test_another_width(self, rig, adapted):
        words = ("gives tokens 1024 wide", "CLIP ViT-L/14", "trained with 24", "load that image encoder")
        refused_run(rig, adapted, *rig.wired(tokens=rig.tokens(width=1024)), *words)

    def test_another_layer(self, rig, base):
        config = rig.config()
        config = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, layer="penultimate"))
        from magdiff_core.host.adapter_file import adapter_patcher

        model = rig.apply_adapter(base, adapter_patcher(rig.adapter_weights(base), config), rig.PartStrengths())
        refused_run(rig, model, *rig.wired(), "penultimate layer", "holds last")


class TestNaN:
    def test_noise(self, rig, adapted):
        noise = rig.random(4, 4, 8, 8, seed=1)
        noise[1, 2, 3, 4] = float("nan")
        refused_run(rig, adapted, *rig.wired(), "noise holds 1 values", noise=noise)

    def test_latent_image(self, rig, adapted):
        from magdiff_core.host.sampling import sample

        samples = torch.zeros(4, 4, 8, 8)
        samples[0, 0, 0, :3] = float("inf")
        with rig.unet_calls(adapted) as calls, pytest.raises(ValueError, match="LATENT holds 3 values that are NaN or infinite"):
            sample(adapted, *rig.wired(), {"samples": samples}, 1, 2, 7.5, 0.5)
        assert not calls

    @pytest.mark.parametrize("side", ["positive", "negative"])
    def test_prompt(self, rig, adapted, side):
        pair = dict(zip(("positive", "negative"), rig.wired(), strict=True))
        pair[side][0][0][0, 5, :2] = float("nan")
        refused_run(rig, adapted, pair["positive"], pair["negative"], f"the {side} prompt holds 2 values", "NaN")

    def test_tokens_and_subject_latents(self, rig, adapted):
        for part, word in (("tokens", "clip_vision_output"), ("latents", "subject latent")):
            payload = rig.subject()
            broken = payload[part].layers["last"] if part == "tokens" else payload[part].levels[2]
            broken[0, 0, 0, 0] = float("nan")
            refused_run(rig, adapted, *rig.wired(**payload), word, "NaN")


class TestMissingParts:
    def test_a_model_without_an_adapter(self, rig, base):
        from magdiff_core.host.sampling import sample

        latent = {"samples": torch.zeros(4, 4, 8, 8)}
        positive, negative = rig.wired()
        for pair in ((positive, rig.prompts()[1]), (rig.prompts()[0], negative)):
            with rig.unet_calls(base) as calls, pytest.raises(ValueError, match="no MagDiff adapter.*Apply MagDiff Adapter"):
                sample(base, *pair, latent, 1, 2, 7.5, 1.0)
            assert not calls
        assert sample(base, *rig.prompts(), latent, 1, 2, 7.5, 1.0)["samples"].shape == (4, 4, 8, 8)

    @pytest.mark.parametrize(
        ("part", "payload", "node"), [("apa.", "tokens", "APA Conditioning"), ("hfa.", "latents", "HFA Pyramid Encode")]
    )
    def test_an_adapter_without_the_part_that_is_wired(self, rig, base, part, payload, node):
        weights = {k: v for k, v in rig.adapter_weights(base).items() if not k.startswith(part)}
        model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        wired = rig.wired(**{payload: rig.subject()[payload]})
        refused_run(rig, model, *wired, f"{node} is wired", f"{part}*", "take the node out")

    @pytest.mark.parametrize("kept", ["temporal.conv.", "temporal.attn.", "temporal.", "apa.", "hfa."])
    def test_an_adapter_of_one_part_works(self, rig, base, kept):
        weights = {k: v for k, v in rig.adapter_weights(base).items() if k.startswith((kept, "projector."))}
        if kept != "apa.":
            weights = {k: v for k, v in weights.items() if not k.startswith("projector.")}
        model = rig.apply_adapter(base, rig.adapter(base, weights), rig.PartStrengths())
        payload = {"apa.": {"tokens": rig.tokens()}, "hfa.": {"latents": rig.latents()}}.get(kept)
        wired = rig.wired(**payload) if payload else rig.prompts()
        assert rig.difference(rig.run(model, *wired), rig.run(base, *rig.prompts())) > 1e-3


class TestSettings:
    @pytest.mark.parametrize("value", [-0.1, 3.1, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["alpha_text", "alpha_image"])
    def test_alphas_out_of_range(self, rig, name, value):
        with pytest.raises(ValueError, match=rf"{name} is {re.escape(str(value))}.*from 0 to 3"):
            rig.AlphaSettings(**{name: value})

    def test_both_alphas_zero(self, rig):
        with pytest.raises(ValueError, match="alpha_text and alpha_image are both 0.*raise one"):
            rig.AlphaSettings(0.0, 0.0)

    def test_one_alpha_zero_works(self, rig, adapted):
        for alphas in ((0.0, 1.0), (1.0, 0.0)):
            out = rig.run(adapted, *rig.wired(**rig.subject(alphas=rig.AlphaSettings(*alphas))))
            assert torch.isfinite(out).all()

    @pytest.mark.parametrize("percents", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
    def test_an_empty_or_impossible_range(self, rig, percents):
        with pytest.raises(ValueError, match="start_percent.*end_percent.*from 0 to 1"):
            rig.AlphaSettings(1.0, 1.0, *percents)

    def test_an_unknown_mode(self, rig):
        with pytest.raises(ValueError, match="'strong'.*'adaptive' or 'fixed'"):
            rig.AlphaSettings(mode="strong")

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_strengths_out_of_range(self, rig, value):
        with pytest.raises(ValueError, match=r"strength of pyramid is .* from 0 \(off\) to 1"):
            rig.PartStrengths(pyramid=value)


class TestAdapterFiles:
    @pytest.fixture
    def save(self, rig, base, tmp_path):
        from safetensors.torch import save_file

        def save(weights=None, metadata=None, name="adapter.safetensors"):
            path = tmp_path / name
            metadata = rig.config().to_metadata() if metadata is None else metadata
            save_file(rig.adapter_weights(base) if weights is None else weights, str(path), metadata=metadata)
            return path

        return save

    def refused(self, path, *words):
        from magdiff_core.host.adapter_file import load_adapter_file

        with pytest.raises(ValueError) as error:
            load_adapter_file(str(path))
        for word in words:
            assert word in str(error.value), (word, str(error.value))

    def test_a_good_file_keeps_its_facts(self, rig, base, save):
        from magdiff_core.host.adapter_file import load_adapter_file

        config = rig.config(licence="some", trained_from="clips", frames=16, base_hashes={"out.2.bias": "0"})
        weights = {**rig.adapter_weights(base), "base.out.2.bias": torch.ones(4)}
        loaded = load_adapter_file(str(save(weights, config.to_metadata())))
        assert loaded.config == config
        assert loaded.base_differences.keys() == {"out.2.bias"}
        state = loaded.patcher.model.state_dict()
        assert state.keys() == {key for key in weights if not key.startswith("base.")}
        assert all(torch.equal(state[key], weights[key]) for key in state)

    def test_facts_of_a_newer_pack_are_passed_over(self, rig, save):
        from magdiff_core.host.adapter_file import load_adapter_file

        metadata = rig.config().to_metadata()
        stored = json.loads(metadata["config"])
        stored["later"], stored["image_encoder"]["later"] = 1, 2
        assert load_adapter_file(str(save(metadata={**metadata, "config": json.dumps(stored)}))).config == rig.config()

    def test_cut_short(self, save, tmp_path):
        whole = save().read_bytes()
        for share in (0.0001, 0.5, 0.99):
            path = tmp_path / "cut.safetensors"
            path.write_bytes(whole[: max(4, int(len(whole) * share))])
            self.refused(path, "cut.safetensors")

    def test_a_pickle_with_code_in_it_is_not_run(self, tmp_path):
        import pickle

        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return exec, (f"open({str(ran)!r}, 'w').close()",)

        path = tmp_path / "evil.pth"
        path.write_bytes(pickle.dumps({"temporal.x": Evil()}))
        torch.save({"temporal.x": Evil()}, tmp_path / "evil.pt")
        for name in ("evil.pth", "evil.pt"):
            self.refused(tmp_path / name, name)
        assert not ran.exists()

    def test_a_foreign_file(self, save):
        lora = {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}
        self.refused(save(lora, {}), "no MagDiff adapter", "LoRA")

    def test_our_tensors_without_metadata(self, save):
        self.refused(save(metadata={}), "metadata", "original file")

    def test_another_format_version(self, rig, save):
        self.refused(save(metadata={**rig.config().to_metadata(), "format_version": "9"}), "'9'", "version 1", "update")

    @pytest.mark.parametrize("config", [None, "{", "[1]", '{"image_encoder": 3}'])
    def test_unreadable_metadata(self, rig, save, config):
        metadata = {k: v for k, v in rig.config().to_metadata().items() if k != "config"}
        self.refused(save(metadata=metadata if config is None else {**metadata, "config": config}), "damaged", "config")

    def test_missing_and_left_over_tensors(self, rig, base, save):
        weights = rig.adapter_weights(base)
        for key in ("temporal.conv.input_blocks.1.0.layers.2.conv.bias", "projector.norm_out.weight", "projector.proj_in.weight"):
            self.refused(save({k: v for k, v in weights.items() if k != key}), "damaged", key)
        extra = "temporal.conv.input_blocks.1.0.layers.4.conv.bias"
        self.refused(save({**weights, extra: torch.zeros(32)}), "damaged", extra)

    def test_tensors_that_do_not_fit_together(self, rig, base, save):
        weights = rig.adapter_weights(base)
        for key in ("hfa.level.1.conv_out.weight", "temporal.attn.input_blocks.1.1.transformer_blocks.0.to_out.weight"):
            self.refused(save({**weights, key: torch.zeros(3, 5, *weights[key].shape[2:])}), "damaged", key)

    def test_heads_that_do_not_divide(self, rig, save):
        metadata = dataclasses.replace(rig.config(), projector_heads=5).to_metadata()
        self.refused(save(metadata=metadata), "5 projector heads", "32 channels")

    def test_no_part_at_all(self, rig, save):
        self.refused(save({"base.out.2.bias": torch.zeros(4)}), "no MagDiff part", "temporal.*")
