"""Splitting the checkpoint: control file and stock base together give the checkpoint again, and no other base is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import revideo_files
import torch
from safetensors import safe_open
from safetensors.torch import load_file

KEY_VALUE = ".time_stack.0.attn1.to_"


@pytest.fixture(scope="module")
def rig(comfy_session):
    import video_run

    return video_run


def stock(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The checkpoint's UNet before its temporal keys and values were trained."""
    generator = torch.Generator().manual_seed(8)
    made = {key: value for key, value in revideo_files.weights().items() if key.startswith("model.diffusion_model.")}
    for key, value in made.items():
        if f"{KEY_VALUE}k" in key or f"{KEY_VALUE}v" in key:
            made[key] = value + 0.05 * torch.randn(value.shape, generator=generator)
    return {**made, **changes}


@pytest.fixture(scope="module")
def files(tmp_path_factory, comfy_session):
    """Paths of the checkpoint, its base, and the control file."""
    from magdiff_core.host.revideo_split import split_checkpoint

    folder = tmp_path_factory.mktemp("split")
    checkpoint, base = revideo_files.save(folder / "model.safetensors"), revideo_files.save(folder / "svd.safetensors", stock())
    done = split_checkpoint(checkpoint, base, folder / "control.safetensors")
    return checkpoint, base, done


def model_of(path: Path):
    from magdiff_core.host.revideo_base import video_model
    from magdiff_core.weights.revideo import read_unet

    return video_model(read_unet(load_file(path)), 16)


def test_what_is_written(files):
    _, _, done = files
    weights = revideo_files.weights()
    trained = sum((f"{KEY_VALUE}k" in key or f"{KEY_VALUE}v" in key) and "diffusion_model" in key for key in weights)
    assert (done.control, done.key_value, done.others) == (sum("ctrlnet" in key for key in weights), trained, 0)
    written = load_file(done.path)
    assert sum(key.startswith("base.") for key in written) == trained > 0
    with safe_open(done.path, "pt") as file:
        about = file.metadata()
    assert (about["format"], about["format_version"], about["clip_frames"]) == ("magdiff-control", "1", "3")
    assert len(json.loads(about["base_hashes"])) == trained
    assert "non-commercial" in about["licence"]
    assert not list(done.path.parent.glob("*.part"))


def test_base_and_control_file_give_the_checkpoint_again(rig, files):
    from magdiff_core.host.control_base import load_control_onto
    from magdiff_core.host.control_file import load_revideo

    checkpoint, base, done = files
    whole, control = load_revideo(str(checkpoint))
    plain = model_of(base)
    patched, own_control = load_control_onto(plain, str(done.path))
    assert own_control.clip_frames == control.clip_frames

    def run(model, with_control):
        made = None
        if with_control is not None:
            made = rig.ReVideoControl(with_control.patcher, rig.Hints()).set_cond_hint(None)
        vector = {"motion_bucket_id": 127, "fps": 11, "augmentation_level": 0.02}
        return rig.run(model, [[[text, {**extras, **vector}]] for ((text, extras),) in rig.conds(made)])

    expected = run(whole.model, control)
    got = run(patched, own_control)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float((run(plain, own_control) - expected).abs().max() / expected.abs().max()) > 1e-4
    # the base itself is left as it was
    assert torch.equal(run(plain, None), run(model_of(base), None))


def test_other_weights_that_differ_are_written_too(tmp_path, files):
    from magdiff_core.host.revideo_split import split_checkpoint

    key = "model.diffusion_model.out.2.bias"
    base = revideo_files.save(tmp_path / "svd.safetensors", stock(**{key: revideo_files.weights()[key] + 1.0}))
    done = split_checkpoint(files[0], base, tmp_path / "control.safetensors")
    assert done.others == 1 and "1 other weights" in str(done)
    torch.testing.assert_close(load_file(done.path)["base.out.2.bias"], torch.full((4,), -1.0))


def test_a_base_in_half_precision_differs_in_nothing_else(tmp_path, files):
    from magdiff_core.host.revideo_split import split_checkpoint

    base = revideo_files.save(tmp_path / "svd.safetensors", {key: value.half() for key, value in stock().items()})
    done = split_checkpoint(files[0], base, tmp_path / "control.safetensors")
    assert (done.key_value, done.others) == (files[2].key_value, 0)


def test_another_base_is_refused(files, tmp_path):
    from magdiff_core.host.control_base import load_control_onto

    changed = {key: value * 1.01 if f"{KEY_VALUE}k" in key else value for key, value in stock().items()}
    other = model_of(revideo_files.save(tmp_path / "other.safetensors", changed))
    with pytest.raises(ValueError, match="made for another base: .*to_k.weight is not the same in this MODEL. Load Stable Video"):
        load_control_onto(other, str(files[2].path))


def test_a_base_in_a_precision_that_cannot_be_compared_is_said(files, tmp_path, caplog):
    from magdiff_core.host.control_base import load_control_onto

    narrow = {key: value.bfloat16() for key, value in stock().items()}
    model = model_of(revideo_files.save(tmp_path / "svd.safetensors", narrow))
    model.model.diffusion_model.to(torch.bfloat16)
    load_control_onto(model, str(files[2].path))
    assert "cannot be told" in caplog.text


def test_a_file_without_changes_or_without_hashes_of_the_base_is_said(files, tmp_path, caplog):
    from magdiff_core.host.control_base import load_control_onto

    checkpoint, base, done = files
    load_control_onto(model_of(base), str(done.path))
    assert not caplog.text
    patched, _ = load_control_onto(model_of(base), str(checkpoint))
    assert not patched.patches
    assert "model.safetensors holds a control branch, but no changes to the base" in caplog.text
    caplog.clear()
    patched, _ = load_control_onto(model_of(base), str(revideo_files.save(tmp_path / "control.safetensors", load_file(done.path))))
    assert len(patched.patches) == done.key_value
    assert f"changes {done.key_value} weights without a hash" in caplog.text and "cannot be told" in caplog.text


def test_a_model_of_another_kind_is_refused(files, comfy_session):
    import tiny

    from magdiff_core.host.control_base import load_control_onto

    with pytest.raises(ValueError, match="takes 8 channels"):
        load_control_onto(tiny.tiny_model(), str(files[2].path))


def test_another_version_and_other_files_are_refused(files, tmp_path):
    from magdiff_core.host.control_base import load_control_onto

    _, base, done = files
    for metadata, words in (({"format_version": "2"}, "version 2, this pack reads 1"), ({"format": "x"}, "format x, not magdiff")):
        path = revideo_files.save(tmp_path / "control.safetensors", load_file(done.path), **metadata)
        with pytest.raises(ValueError, match=words):
            load_control_onto(model_of(base), str(path))
    with pytest.raises(ValueError, match="svd.safetensors holds no ReVideo control branch"):
        load_control_onto(model_of(base), str(base))


def test_load_revideo_takes_a_control_file_for_its_branch(files):
    from magdiff_core.host.control_file import load_revideo

    loaded, control = load_revideo(str(files[2].path))
    assert loaded.model is None and control.clip_frames == 3


def test_what_cannot_be_split(files, tmp_path):
    from magdiff_core.host.revideo_split import split_checkpoint

    checkpoint, base, done = files
    with pytest.raises(FileExistsError, match="exists: choose another name"):
        split_checkpoint(checkpoint, base, done.path)
    with pytest.raises(ValueError, match="svd.safetensors holds no ReVideo control branch"):
        split_checkpoint(base, checkpoint, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="control.safetensors holds no UNet"):
        split_checkpoint(checkpoint, done.path, tmp_path / "x.safetensors")
    smaller = stock()
    del smaller["model.diffusion_model.out.0.bias"]
    with pytest.raises(ValueError, match="other layers or sizes"):
        split_checkpoint(checkpoint, revideo_files.save(tmp_path / "s.safetensors", smaller), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_command_line(files, tmp_path, capsys):
    from magdiff_core.host.revideo_split import main

    target = tmp_path / "control.safetensors"
    assert main([str(files[0]), "--base", str(files[1]), "--out", str(target)]) == 0
    assert "temporal keys and values as differences" in capsys.readouterr().out
    assert target.is_file()
    assert main([str(files[0]), "--base", str(files[1]), "--out", str(target)]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_nodes(pack, files):
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("magdiff")[0])
    folder.mkdir(parents=True, exist_ok=True)
    names = ("split-model.safetensors", "split-svd.safetensors", "split-control.safetensors")
    try:
        for name, path in zip(names, files[:2]):
            (folder / name).write_bytes(path.read_bytes())
        (text,) = pack["MagDiffSplitReVideoCheckpoint"].execute(*names).args
        assert "split-control.safetensors: control branch of" in text
        model, control = pack["MagDiffLoadReVideoControl"].execute(model_of(files[1]), names[2]).args
        assert len(model.patches) == files[2].key_value
        assert control.clip_frames == 3
    finally:
        for name in names:
            (folder / name).unlink(missing_ok=True)
    for name in ("../x.safetensors", "x.ckpt", ".safetensors", "a\\b.safetensors", ""):
        with pytest.raises(ValueError, match="give a plain name"):
            pack["MagDiffSplitReVideoCheckpoint"].execute("a", "b", name)
