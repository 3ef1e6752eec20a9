"""The full-size benchmark of ReVideo: its checkpoint is the published one, and both parts run in a small size."""

from __future__ import annotations

import math
import re

import pytest
import revideo_files
import torch
from safetensors import safe_open

LINE = re.compile(r"ratio \d+\.\d\d case=\S+ threads=1 range=\d+\.\d\d\.\.\d+\.\d\d( \w+=\S+)*")
SIDE = 64


@pytest.fixture(scope="module")
def layout(comfy_session):
    from benchmarks import revideo_layout

    return revideo_layout


@pytest.fixture(scope="module")
def small(layout):
    unet = {
        **layout.SVD_UNET, "model_channels": 32, "channel_mult": [1, 1, 1, 1], "num_res_blocks": [1, 1, 1, 1],
        "transformer_depth": [1, 1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0], "context_dim": 16,
        "num_head_channels": 16,
    }  # fmt: skip
    return layout.Size(unet, 16, 2, 8, 16, 8)


def test_the_published_counts(layout):
    """Tensors and parameters of the parts that are read, as the released code builds them."""
    shapes = layout.whole_shapes()
    counted = {}
    for prefix in ("model.diffusion_model.", "model.ctrlnet_model.", "first_stage_model."):
        sizes = [math.prod(shape) for key, shape in shapes.items() if key.startswith(prefix)]
        counted[prefix] = (len(sizes), sum(sizes))
    assert counted == {
        "model.diffusion_model.": (1428, 1_524_623_082),
        "model.ctrlnet_model.": (705, 685_116_129),
        "first_stage_model.": (372, 97_742_775),
    }
    # transformers' CLIPVisionModelWithProjection of OpenCLIP ViT-H/14
    assert sum(math.prod(shape) for key, shape in shapes.items() if ".visual." in key) == 632_076_800


def test_published_names_of_the_control_branch(layout):
    from magdiff_core.weights.revideo import control_prefix, our_name

    prefix = control_prefix(layout.sampled_shapes())
    control = [key.removeprefix(prefix) for key in layout.sampled_shapes() if key.startswith(prefix)]
    assert prefix == "model.ctrlnet_model." and len(set(map(our_name, control)) - {None}) == 705
    for key in revideo_files.weights():
        if key.startswith(prefix):
            assert layout.published_name(our_name(key.removeprefix(prefix))) == key.removeprefix(prefix)


def test_the_file_is_written_once_and_whole(layout, small, tmp_path, monkeypatch, capsys):
    from benchmarks import revideo_full

    path = revideo_full.prepare(tmp_path, whole=False, size=small)
    written = path.stat().st_mtime_ns
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(layout.sampled_shapes(small))
        weight = file.get_tensor("model.ctrlnet_model.weight_embedding.conv_final.weight")
        norm = file.get_tensor("model.diffusion_model.out.0.weight")
    assert weight.dtype == torch.float16 and weight.float().std().item() == pytest.approx((9 * 32) ** -0.5, rel=0.05)
    assert norm.float().mean().item() == pytest.approx(1.0, abs=0.05)
    assert revideo_full.prepare(tmp_path, whole=False, size=small) == path and path.stat().st_mtime_ns == written

    def full_disk(path, *_):
        return type("Usage", (), {"free": 1 << 20})

    monkeypatch.setattr(layout.shutil, "disk_usage", full_disk)
    with pytest.raises(OSError, match="MiB.*another folder with --files"):
        layout.write_random(tmp_path / "other.safetensors", {"weight": (1 << 20,)}, {})
    monkeypatch.undo()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(layout.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        layout.write_random(tmp_path / "other.safetensors", {"weight": (2, 2)}, {})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module")
def loaded(layout, small, tmp_path_factory):
    from benchmarks import revideo_full
    from benchmarks.pack_nodes import call_node

    folder = tmp_path_factory.mktemp("files")
    revideo_full.prepare(folder, whole=True, size=small)
    pack = revideo_full.load_pack(folder)
    with torch.inference_mode():
        yield pack, call_node(pack, "MagDiffLoadReVideo", checkpoint=revideo_full.WHOLE_FILE)
    (folder / revideo_full.WHOLE_FILE).unlink()


def test_the_clip(loaded):
    from benchmarks.revideo_full import measure_clip

    seconds = measure_clip(*loaded, SIDE, SIDE, 14, steps=1)
    assert seconds.keys() == {"conditioning_s", "sampling_s"} and min(seconds.values()) > 0


def test_the_steps(loaded):
    from benchmarks.pairs import line
    from benchmarks.revideo_full import measure_step

    pack, (model, *_, control) = loaded
    ran = []
    control.patcher.model.register_forward_hook(lambda *_: ran.append("control"))
    plain, controlled = measure_step(pack, model, control, 8, 14, 2, context=16)
    assert len(plain) == len(controlled) == 2
    assert ran == 3 * ["control"], "one call for cond and uncond, in the steps with the branch alone"
    assert LINE.fullmatch(line("revideo", 1, ("plain", plain), ("control", controlled)))
