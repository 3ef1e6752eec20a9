"""The parity command on ReVideo's files, and that each typical mistake makes it fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"

pytestmark = pytest.mark.usefixtures("comfy_session")


def run(name: str) -> tuple[int, dict[str, str], str]:
    """Exit status, verdict by name, and the summary."""
    from magdiff_core.host.parity.command import run as command

    lines: list[str] = []
    status = command(FIXTURES / f"{name}.safetensors", lines.append)
    return status, {line.split()[0]: line.split("  ")[-1] for line in lines[:-1]}, lines[-1]


def test_control_branch_maps_and_schedules():
    status, verdicts, summary = run("revideo_control")
    assert {name for name, verdict in verdicts.items() if verdict != "ok"} == {"C.constant.tracks_xy"}
    assert (status, summary) == (0, "34 covered, 0 over, 1 not covered")


def test_a_run_with_comfyuis_sampler_and_guider():
    status, verdicts, summary = run("revideo_sampler")
    assert set(verdicts.values()) == {"ok"}
    assert (status, summary) == (0, "11 covered, 0 over, 0 not covered")


MISTAKES = {
    # (encoder, what is wrong with its input, what is wrong with its output)
    "weights of content and motion changed over": ("safm.weight_encoder", None, torch.neg),
    "sigma for c_noise": ("safm.weight_encoder", lambda x: torch.cat((x[:, :1], (4.0 * x[:, 1:]).exp()), 1), None),
    "time and region changed over": ("safm.weight_encoder", lambda x: x.flip(1), None),
    "region inverted": ("safm.weight_encoder", lambda x: torch.cat((1.0 - x[:, :1], x[:, 1:]), 1), None),
    "horizontal before vertical": ("motion_encoder", lambda x: x.flip(1), None),
    "video in 0 .. 1": ("content_encoder", lambda x: (x + 1.0) / 2.0, None),
}


@pytest.mark.parametrize(("name", "result"), [("revideo_control", "A.out.mid"), ("revideo_sampler", "B.out.latent")])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_typical_mistake_is_found(monkeypatch, mistake, name, result):
    from magdiff_core.host.parity import revideo_branch

    encoder, on_input, on_output = MISTAKES[mistake]
    build = revideo_branch.build_control

    def wrong(*args):
        model = build(*args)
        layer = model.get_submodule(encoder)
        if on_input:
            layer.register_forward_pre_hook(lambda layer, args: (on_input(args[0]),))
        if on_output:
            layer.register_forward_hook(lambda layer, args, out: on_output(out))
        return model

    monkeypatch.setattr(revideo_branch, "build_control", wrong)
    status, verdicts, _ = run(name)
    assert status == 1
    assert verdicts[result] == "OVER"
