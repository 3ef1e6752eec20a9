"""An adapter out of parts: each weight is that of its source, at image strength 0 it is the source of the layers along time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import released
import torch
import videocrafter_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def vidrd() -> dict[str, torch.Tensor]:
    """A small `ModelT2V.pth`."""
    return {f"unet.{key}": value for key, value in released.unet_weights(image_stream=False, seed=3).items()}


@pytest.fixture(scope="module")
def files(rig, tmp_path_factory):
    """Paths by name: VidRD, MagDiff and VideoCrafter1 as pickles; adapters with every part, for v prediction and other bases."""
    from magdiff_core.adapter import AdapterConfig

    folder = tmp_path_factory.mktemp("compose")
    torch.save({"state_dict": vidrd(), "epoch": 3, "callbacks": {"best": 0.5}}, folder / "ModelT2V.pth")
    whole = {f"unet.{key}": value for key, value in released.unet_weights(seed=4).items()}
    whole |= {f"enclip_projector.{key}": value for key, value in released.projector_weights().items()}
    torch.save({"state_dict": whole}, folder / "MagDiff.pth")
    shapes = {key: value.shape for key, value in rig.tiny_model().model.diffusion_model.state_dict().items()}
    torch.save({"state_dict": videocrafter_files.image_to_video(shapes, 24), "global_step": 7}, folder / "model.ckpt")
    weights = rig.adapter_weights(rig.tiny_model(), seed=5)
    config = rig.config(base="SD2.1", licence="for research", trained_from="a test", clip_norm=False, frames=16)
    weights["base.out.2.bias"] = torch.ones(4)
    save_file(weights, folder / "all.safetensors", config.to_metadata())
    whole_clip = rig.config(base="SD2.1", subject_frames="all", affinity=(1.0, 0.5), frames=16)
    save_file(weights, folder / "first to last.safetensors", whole_clip.to_metadata())
    save_file(weights, folder / "v.safetensors", AdapterConfig(base="SD2.1", prediction="v").to_metadata())
    save_file(weights, folder / "sd15.safetensors", AdapterConfig(base="SD1.5").to_metadata())
    wider = rig.adapter_weights(rig.tiny_model(model_channels=64), seed=6)
    save_file(wider, folder / "wider.safetensors", rig.config().to_metadata())
    return {path.stem: path for path in folder.iterdir()}


def compose(target: Path, **chosen):
    from magdiff_core.host.compose import compose_files

    return compose_files(chosen, target)


@pytest.fixture(scope="module")
def recipe(files, tmp_path_factory):
    """Layers along time of VidRD, image stream of VideoCrafter1, a new subject branch."""
    target = tmp_path_factory.mktemp("made") / "recipe.safetensors"
    return compose(target, temporal=files["ModelT2V"], image=files["model"], subject="zero"), target


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_every_weight_is_that_of_its_source(recipe, files):
    from magdiff_core.weights.released import read_released

    written = load_file(recipe[1])
    temporal = read_released(vidrd()).adapter
    assert {key for key in written if key.startswith("temporal.")} == temporal.keys()
    for key, value in temporal.items():
        assert torch.equal(written[key], value), key
    published = torch.load(files["model"], weights_only=True)["state_dict"]
    projector = {key.removeprefix("image_proj_model."): key for key in published if key.startswith("image_proj_model.")}
    assert {key for key in written if key.startswith("projector.")} == {f"projector.{key}" for key in projector}
    for ours, theirs in projector.items():
        assert torch.equal(written[f"projector.{ours}"], published[theirs])
    keys = [key for key in published if key.endswith(".attn2.to_k_ip.weight")]
    assert len(keys) == sum(key.endswith(".to_k_image.weight") for key in written) > 0
    for key in keys:
        site = key.removeprefix("model.diffusion_model.").removesuffix(".attn2.to_k_ip.weight")
        assert torch.equal(written[f"apa.{site}.to_k_image.weight"], published[key])
        assert torch.equal(written[f"apa.{site}.to_v_image.weight"], published[key.replace("to_k_ip", "to_v_ip")])
        assert written[f"apa.{site}.alpha_text"] == written[f"apa.{site}.alpha_image"] == 1.0
    assert written["hfa.conv_z.weight"].shape == (32, 4, 3, 3) and not written["hfa.conv_z.weight"].any()


def test_the_configuration_of_each_part_comes_with_it(recipe):
    from magdiff_core.adapter import AdapterConfig

    config = AdapterConfig.from_metadata(metadata(recipe[1]))
    # VidRD's
    assert (config.frames, config.clip_norm, config.prediction, config.fps) == (8, True, "eps", 0.0)
    assert config.schedule.base_scale == 1.0 and config.temporal_head_width == 64
    # VideoCrafter1's
    assert (config.image_encoder.width, config.image_encoder.crop, config.image_encoder.channels) == (24, False, "rgb")
    assert (config.image_tokens, config.negative_picture, config.projector_heads) == ("picture", "grey", 1)
    # of a new subject branch
    assert (config.subject_frames, config.affinity) == ("first", ())
    assert config.licence.startswith("temporal: none stated; image: research and non-commercial use")
    assert config.trained_from == "temporal: released VidRD checkpoint; image: released VideoCrafter1 image-to-video"


def test_the_subject_branch_of_a_file_brings_its_configuration(files, tmp_path):
    from magdiff_core.adapter import AdapterConfig

    compose(tmp_path / "x.safetensors", temporal=files["ModelT2V"], subject=files["first to last"])
    config = AdapterConfig.from_metadata(metadata(tmp_path / "x.safetensors"))
    assert (config.subject_frames, config.affinity, config.frames) == ("all", (1.0, 0.5), 8)


def test_the_file_says_where_its_parts_came_from(recipe, files):
    parts = json.loads(metadata(recipe[1])["parts"])
    assert parts["temporal"]["file"] == "ModelT2V.pth" and parts["temporal"]["licence"] == "none stated"
    assert parts["temporal"]["bytes"] == files["ModelT2V"].stat().st_size
    assert parts["image"]["file"] == "model.ckpt" and "non-commercial" in parts["image"]["licence"]
    assert parts["image"]["tensors"] == sum(key.startswith(("apa.", "projector.")) for key in load_file(recipe[1]))
    assert parts["subject"]["file"] == "zero"
    text = str(recipe[0])
    assert text.startswith("recipe.safetensors\n")
    for words in ("ModelT2V.pth", "licence: none stated", "licence: research and non-commercial", "zeros, which change nothing"):
        assert words in text
    assert not list(recipe[1].parent.glob("*.part"))


def test_differences_to_a_base_are_left_out_and_said(files, tmp_path):
    text = str(compose(tmp_path / "x.safetensors", image=files["all"]))
    assert "left out: 1 differences to the base of all.safetensors" in text
    assert not any(key.startswith("base.") for key in load_file(tmp_path / "x.safetensors"))


def test_at_image_strength_0_it_is_vidrd_exactly(rig, recipe):
    """On VidRD's own UNet, through ComfyUI's sampler, with the subject wired."""
    from magdiff_core.host.adapter_file import adapter_patcher, load_adapter_file
    from magdiff_core.weights.released import read_released

    source = read_released(vidrd())
    base = rig.tiny_model()
    base.model.diffusion_model.load_state_dict(source.unet)
    original = rig.apply_adapter(base, adapter_patcher(source.adapter, source.config), rig.PartStrengths())
    expected = rig.run(original, *rig.prompts())
    composed = load_adapter_file(str(recipe[1]))
    at_zero = rig.apply_adapter(base, composed, rig.PartStrengths(image_stream=0.0))
    assert torch.equal(rig.run(at_zero, *rig.wired()), expected)
    assert torch.equal(rig.run(at_zero, *rig.prompts()), expected)
    assert rig.difference(rig.run(rig.apply_adapter(base, composed, rig.PartStrengths()), *rig.wired()), expected) > 1e-3
    assert rig.difference(rig.run(base, *rig.prompts()), expected) > 1e-3


def test_all_parts_of_one_file_are_that_file_s_adapter(files, tmp_path):
    """So a pickle of a whole model becomes a safetensors adapter."""
    from magdiff_core.weights.released import read_released

    compose(tmp_path / "x.safetensors", **dict.fromkeys(("temporal", "image", "subject"), files["MagDiff"]))
    expected = read_released(torch.load(files["MagDiff"], weights_only=True)["state_dict"]).adapter
    written = load_file(tmp_path / "x.safetensors")
    assert written.keys() == expected.keys() and all(torch.equal(written[key], value) for key, value in expected.items())
    compose(tmp_path / "one.safetensors", image=files["MagDiff"])
    assert {key.split(".")[0] for key in load_file(tmp_path / "one.safetensors")} == {"apa", "projector"}


def test_made_once(recipe, files):
    before = recipe[1].stat().st_mtime_ns
    again = compose(recipe[1], temporal=files["ModelT2V"], image=files["model"], subject="zero")
    assert not again.made and "is there already, made of the same files" in str(again)
    assert str(again).splitlines()[1:] == str(recipe[0]).splitlines()[1:]
    with pytest.raises(FileExistsError, match="exists and is another adapter: choose another name"):
        compose(recipe[1], temporal=files["ModelT2V"], image=files["MagDiff"], subject="zero")
    with pytest.raises(FileExistsError, match="is another adapter"):
        compose(files["all"], temporal=files["ModelT2V"])
    assert recipe[1].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "no file is chosen"),
        ({"temporal": "ModelT2V", "image": "v"}, "trained for prediction eps, v.safetensors .image_from. for v"),
        ({"temporal": "ModelT2V", "subject": "v"}, "trained for prediction eps"),
        ({"temporal": "ModelT2V", "image": "sd15"}, "trained for base SD2.1, sd15.safetensors .image_from. for SD1.5"),
        ({"temporal": "ModelT2V", "image": "wider"}, "at input_blocks.1 their widths differ"),
        ({"temporal": "ModelT2V", "subject": "wider"}, "subject branch is for a model of 64 channels, the others for one of 32"),
        ({"image": "ModelT2V"}, "ModelT2V.pth holds no image stream .apa.*it holds layers along time.*another file for image_from"),
        ({"temporal": "ModelT2V", "subject": "ModelT2V"}, "holds no subject branch"),
        ({"subject": "zero"}, "no file is chosen"),
    ],
)
def test_parts_that_do_not_fit_are_refused(files, tmp_path, chosen, words):
    chosen = {part: files.get(name, name) for part, name in chosen.items()}
    with pytest.raises(ValueError, match=words):
        compose(tmp_path / "x.safetensors", **chosen)
    assert not list(tmp_path.iterdir())


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm-was-done"),))


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_nothing(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": vidrd(), "extra": Harmful()}, tmp_path / "bad.pth")
    for made in (
        lambda: compose(tmp_path / "x.safetensors", temporal=tmp_path / "bad.pth"),
        lambda: convert(tmp_path / "bad.pth", tmp_path / "x.safetensors"),
    ):
        with pytest.raises(ValueError, match="bad.pth is a pickle that wants to run or build"):
            made()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]


def convert(path, target):
    from magdiff_core.host.compose import convert_file

    return convert_file(path, target)


def test_a_whole_pickle_is_converted(files, tmp_path):
    report = convert(files["ModelT2V"], tmp_path / "x.safetensors")
    written, expected = load_file(tmp_path / "x.safetensors"), vidrd()
    assert written.keys() == expected.keys() and all(torch.equal(written[key], value) for key, value in expected.items())
    assert metadata(tmp_path / "x.safetensors")["converted_from"] == "ModelT2V.pth"
    assert f"all {len(expected)} tensors of ModelT2V.pth" in str(report) and "float32" in str(report)
    with pytest.raises(FileExistsError):
        convert(files["ModelT2V"], tmp_path / "x.safetensors")
    # the converted file gives the same parts
    one, two = (compose(tmp_path / f"{name}", temporal=path) and load_file(tmp_path / name) for name, path in (
        ("a.safetensors", files["ModelT2V"]), ("b.safetensors", tmp_path / "x.safetensors")
    ))  # fmt: skip
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_weights_that_share_memory_are_written_apart(tmp_path):
    tied = torch.arange(12.0).reshape(3, 4)
    torch.save({"a.weight": tied, "b.weight": tied, "c.weight": tied.T}, tmp_path / "tied.pt")
    convert(tmp_path / "tied.pt", tmp_path / "x.safetensors")
    written = load_file(tmp_path / "x.safetensors")
    assert torch.equal(written["a.weight"], tied) and torch.equal(written["b.weight"], tied)
    assert torch.equal(written["c.weight"], tied.T)


def test_files_that_cannot_be_read_are_named(files, tmp_path):
    with pytest.raises(ValueError, match="there is no file .*nothing.pth"):
        compose(tmp_path / "x.safetensors", temporal=tmp_path / "nothing.pth")
    save_file({"first_stage_model.decoder.x": torch.ones(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="vae.safetensors: this file holds no MagDiff adapter: it looks like an autoencoder"):
        compose(tmp_path / "x.safetensors", temporal=tmp_path / "vae.safetensors")


def test_the_command_line(files, tmp_path, capsys):
    from magdiff_core.host.compose import main

    target = str(tmp_path / "x.safetensors")
    arguments = ["--temporal", str(files["ModelT2V"]), "--subject", "zero", "--out", target]
    assert main(arguments) == 0 and "layers along time" in capsys.readouterr().out
    assert main(arguments) == 0 and "is there already" in capsys.readouterr().out
    assert main(["--image", str(files["v"]), "--out", target]) == 2
    assert "another adapter" in capsys.readouterr().err
    assert main(["--convert", str(files["ModelT2V"]), "--out", str(tmp_path / "y.safetensors")]) == 0
    assert "tensors of ModelT2V.pth" in capsys.readouterr().out
    for wrong in (["--out", target], ["--convert", "a", "--image", "b", "--out", target]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_the_node(pack, files):
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("magdiff")[0])
    folder.mkdir(parents=True, exist_ok=True)
    node = pack["MagDiffComposeAdapter"]
    names = ("compose-vidrd.pth", "compose-all.safetensors", "composed-here.safetensors")
    try:
        for name, source in zip(names, ("ModelT2V", "all")):
            (folder / name).write_bytes(files[source].read_bytes())
        inputs = {entry.id: entry for entry in node.define_schema().inputs}
        assert inputs["subject_from"].options[:2] == ["none", "zero"]
        assert set(names[:2]) <= set(inputs["temporal_from"].options)
        adapter, text = node.execute(names[0], names[1], "zero", names[2]).args
        assert adapter == names[2] and "licence: for research" in text
        assert {key.split(".")[0] for key in load_file(folder / adapter)} == {"temporal", "apa", "projector", "hfa"}
        assert node.execute("none", names[1], "none", names[2].replace("here", "one")).args[0]
    finally:
        for name in (*names, "composed-one.safetensors"):
            (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="give a plain name like composed-adapter.safetensors"):
        node.execute("none", "none", "zero", "../x.safetensors")
