"""A control branch for a Stable Video Diffusion is one case: another base takes one of its own layout, a MagDiff model too."""

from __future__ import annotations

import pytest
import torch

F, SIDE = 4, 64


@pytest.fixture(scope="module")
def branch(rig):
    """A random control branch whose trunk is the encoder of the tiny SD model: 4 channels, prompts, no temporal layers."""
    import comfy.model_patcher
    from tiny import UNET, randomise

    from magdiff_core.host.revideo_model import ReVideoControlModel, build_control
    from magdiff_core.weights.revideo import read_control

    torch.manual_seed(3)
    with torch.inference_mode(False):
        empty = ReVideoControlModel(dict(UNET), (4, 8, 12, 16)).to_empty(device="cpu")
        randomise(empty)
    model = build_control(read_control(empty.state_dict()), UNET["num_head_channels"])
    device = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def with_control(conditionings, branch, strength=1.0, frames=F):
    from video_run import Hints

    from magdiff_core.host.control_object import ReVideoControl

    control = ReVideoControl(branch, Hints(frames)).set_cond_hint(None, strength)
    return tuple([[text, {**extras, "control": control}] for text, extras in items] for items in conditionings)


def test_on_a_plain_model_with_prompts(rig, base, branch):
    plain = rig.run(base, *rig.prompts())
    got = rig.run(base, *with_control(rig.prompts(), branch))
    assert rig.difference(got, plain) > 0.01
    assert torch.equal(rig.run(base, *with_control(rig.prompts(), branch, 0.0)), plain)


def test_on_a_model_with_a_magdiff_adapter(rig, base, branch):
    model, wired = rig.adapted(base), rig.wired()
    plain = rig.run(model, *wired)
    got = rig.run(model, *with_control(wired, branch))
    assert rig.difference(got, plain) > 0.01
    assert torch.equal(rig.run(model, *with_control(wired, branch, 0.0)), plain)
    alone = rig.run(base, *with_control(rig.prompts(), branch))
    assert rig.difference(got, alone) > 0.01, "the adapter acts beside it"


@pytest.mark.parametrize("anchor", [False, True])
def test_in_context_windows_with_an_adapter(rig, base, branch, anchor):
    frames = 6
    wired = rig.wired(**rig.subject(frames))
    model = rig.windowed(rig.adapted(base), 4, 1, anchor=anchor)
    got = rig.run(model, *with_control(wired, branch, frames=frames), frames=frames)
    assert torch.isfinite(got).all()
    assert rig.difference(got, rig.run(model, *wired, frames=frames)) > 0.01


def test_gamma_takes_the_noise_level_whatever_the_models_timesteps_are(rig, base, branch):
    """H is shown 0.25 ln sigma, also where the model counts steps from 0 to 999; the trunk gets the model's own."""
    seen, times = [], []
    hooks = [
        branch.model.safm.weight_encoder.register_forward_pre_hook(lambda layer, args: seen.append(float(args[0][0, 1, 0, 0]))),
        branch.model.trunk.register_forward_pre_hook(lambda layer, args: times.append(float(args[1][0]))),
    ]
    rig.run(base, *with_control(rig.prompts(), branch), steps=3)
    for hook in hooks:
        hook.remove()
    sampling = base.get_model_object("model_sampling")
    expected = [0.25 * float(sampling.sigma(torch.tensor(t)).log()) for t in times]
    assert len(seen) == 3 and max(times) > 300
    assert seen == pytest.approx(expected, abs=1e-3)


def test_an_svd_branch_does_not_go_onto_it(rig, base):
    import video_run

    with pytest.raises(ValueError, match="takes 8 channels to 32, this MODEL 4 to 32"):
        rig.run(base, *with_control(rig.prompts(), video_run.branch()))
