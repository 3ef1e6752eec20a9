"""The parity command on both stored files, on damaged ones, and on other sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import released
import torch
from safetensors.torch import load_file, save_file

FIXTURES = Path(__file__).parent / "fixtures"

pytestmark = pytest.mark.usefixtures("comfy_session")


def run(path: Path) -> tuple[int, dict[str, str], str]:
    """Exit status, verdict by name, and the summary."""
    from magdiff_core.host.parity.command import run as command

    lines: list[str] = []
    status = command(path, lines.append)
    verdicts = {line.split()[0]: line.split("  ")[-1] for line in lines[:-1]}
    return status, verdicts, lines[-1] if lines else ""


def copy_of(name: str, folder: Path, **changes) -> Path:
    """A copy of a fixture with some tensors replaced (None: taken out)."""
    tensors = {**load_file(FIXTURES / f"{name}.safetensors"), **changes}
    path = folder / f"{name}.safetensors"
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    shutil.copy(FIXTURES / f"{name}.json", folder)
    return path


def test_magdiff():
    status, verdicts, summary = run(FIXTURES / "magdiff.safetensors")
    assert set(verdicts.values()) == {"ok"} and len(verdicts) == 36
    assert (status, summary) == (0, "36 covered, 0 over, 0 not covered")


def test_vidrd():
    status, verdicts, summary = run(FIXTURES / "vidrd.safetensors")
    assert {name for name, verdict in verdicts.items() if verdict != "ok"} == {
        "ext.latents",
        "ext.model_input",
        "ext.more_noise_unit",
    }
    assert (status, summary) == (0, "27 covered, 0 over, 3 not covered")


def test_another_weight_is_found(tmp_path):
    weights = load_file(FIXTURES / "magdiff.safetensors")
    key = "sd.unet.mid_block.temp_convs.0.convs.15.bias"
    path = copy_of("magdiff", tmp_path, **{key: weights[key] + 0.01, "ddim.timesteps": None, "mid.d7_res0": torch.zeros(2)})
    status, verdicts, summary = run(path)
    assert status == 1
    assert verdicts["out.eps"] == verdicts["mid.mid_attn"] == "OVER"
    assert verdicts["mid.down2"] == verdicts["res.tokens"] == "ok", "what comes before the changed weight"
    assert verdicts["mid.d7_res0"] == verdicts["ddim.latents"] == "not covered"
    assert summary.endswith(" over, 3 not covered") and " 0 over" not in summary


def test_the_command_s_last_line_and_exit_status(tmp_path):
    """As `python dev.py parity` runs it, with the output alone stored, and that a little off."""
    stored = load_file(FIXTURES / "magdiff.safetensors")
    gone = {name: None for name in stored if name.startswith(("mid.", "res.", "ddim.", "f1."))}
    path = copy_of("magdiff", tmp_path, **gone, **{"out.eps": stored["out.eps"] + 0.01})
    command = [sys.executable, "-m", "magdiff_core.host.parity", str(path)]
    done = subprocess.run(command, cwd=FIXTURES.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 covered, 1 over, 0 not covered"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_over(value):
    from magdiff_core.host.parity.report import OVER, compare

    (comparison,) = compare({"x": torch.tensor([0.0, value])}, {"x": torch.tensor([0.0, value])}, lambda name: 1.0)
    assert comparison.verdict == OVER


def test_another_shape_is_over():
    from magdiff_core.host.parity.report import OVER, compare

    (comparison,) = compare({"x": torch.zeros(3, 2)}, {"x": torch.zeros(2, 2)}, lambda name: 1.0)
    assert comparison.verdict == OVER


def test_weights_of_another_model(tmp_path, capsys):
    path = tmp_path / "other.safetensors"
    save_file({"sd.model.diffusion_model.x": torch.zeros(1), "out.eps": torch.zeros(1), "in.x": torch.zeros(1)}, path)
    path.with_suffix(".json").write_text('{"meta": {}}')
    assert run(path) == (0, {"out.eps": "not covered"}, "0 covered, 0 over, 1 not covered")
    assert "no layout" in capsys.readouterr().err


def test_files_that_cannot_be_used(tmp_path, capsys):
    alone = tmp_path / "alone.safetensors"
    save_file({"sd.unet.x": torch.zeros(1)}, alone)
    assert run(alone)[0] == 2 and "alone.json is missing" in capsys.readouterr().err
    alone.with_suffix(".json").write_text('{"meta": {}}')
    assert run(alone) == (0, {}, "0 covered, 0 over, 0 not covered") and "no layout" in capsys.readouterr().err
    alone.with_suffix(".json").write_text("[]")
    assert run(alone)[0] == 2 and "meta" in capsys.readouterr().err
    alone.write_bytes(b"not weights")
    assert run(alone)[0] == 2 and "safetensors" in capsys.readouterr().err
    cut = copy_of("magdiff", tmp_path, **{"sd.unet.conv_out.weight": None})
    assert run(cut)[0] == 2 and "out.2.weight" in capsys.readouterr().err


def test_no_size_is_fixed(tmp_path):
    """Another number of levels, layers, frames and heads, h != w: every name is found and has the shape that its place gives."""
    widths, frames, height, width = (32, 64, 64), 2, 12, 20
    weights = released.unet_weights(widths, (False, True, True), layers=1, context=16, scale=0.5)
    projector = released.projector_weights(token_width=16)

    meta = {
        "ldm_equivalent": {"num_head_channels": 8, "num_heads": -1},
        "resampler_config": {"heads": 4},
        "scheduler": {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "guidance_scale": 2.0,
            "set_alpha_to_one": True,
        },
    }

    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    shapes = {
        "mid.conv_in": (32, frames, height, width),
        "mid.d0_res0": (32, frames, 6, 10),
        "mid.d1_attn0": (64, frames, 6, 10),
        "mid.d2_tconv0_gn0": (64, frames, 3, 5),
        "mid.down0": (32, frames, 6, 10),
        "mid.down2": (64, frames, 3, 5),
        "mid.mid": (64, frames, 3, 5),
        "mid.up0": (64, frames, 6, 10),
        "mid.up2": (32, frames, height, width),
        "mid.norm_out": (32, frames, 4, 10),
        "res.tokens": (frames, 16, 16),
        "f1.eps": (2, 4, 1, height, width),
        "out.eps": (2, 4, frames, height, width),
        "ddim.noise_pred": (2, 2, 4, frames, height, width),
        "ddim.latents": (2, 1, 4, frames, height, width),
    }
    tensors = {
        **released.prefixed("sd.unet.", weights),
        **released.prefixed("sd.enclip_projector.", projector),
        "in.latent": random(1, 4, frames, height, width),
        "in.subject_latent": random(1, 4, frames, height, width),
        "in.clip_tokens": random(frames, 5, 24),
        "in.text_cond": random(1, 77, 16),
        "in.text_uncond": random(1, 77, 16),
        "in.timestep": torch.tensor([300]),
        "ddim.timesteps": torch.tensor([501, 1]),
        **{name: torch.full(shape, 1e6) for name, shape in shapes.items()},
    }
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps({"meta": meta}))
    from magdiff_core.host.parity import magdiff
    from magdiff_core.host.parity.fixture import load_fixture
    from magdiff_core.host.parity.report import like_stored

    fixture = load_fixture(path)
    with torch.inference_mode():
        computed = magdiff.compute(fixture)
    assert set(fixture.stored) <= set(computed)
    for name, value in fixture.stored.items():
        assert like_stored(computed[name], value).shape == value.shape, name
        assert torch.isfinite(computed[name]).all(), name
    assert run(path)[0] == 1
