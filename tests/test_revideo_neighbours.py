"""The control branch beside what a user's machine and graph bring: little memory, a ControlNet of core's, windows of 14 frames."""

from __future__ import annotations

import pytest
import torch

CLIP = 14
"""Frames of a clip of the released model."""
CLOSE = 1e-4


@pytest.fixture(scope="module")
def rig(comfy_session):
    import video_run

    return video_run


@pytest.fixture(scope="module")
def base(rig):
    return rig.base()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("share", [0.5, 0.0])
@pytest.mark.parametrize("fusion", ["safm", "direct sum"])
def test_a_partial_load_gives_the_same(rig, base, little_memory, share, fusion):
    import comfy.model_management

    conds = rig.conds(rig.control(fusion=fusion))
    expected = rig.run(base, conds)
    comfy.model_management.unload_all_models()
    offloaded = little_memory(share)
    assert torch.equal(rig.run(base, conds), expected)
    assert {(name, low) for name, low, _ in offloaded} == {("StoredVector", True), ("ReVideoControlModel", True)}
    comfy.model_management.unload_all_models()


def test_the_same_after_everything_was_unloaded(rig, base):
    import comfy.model_management

    conds = rig.conds(rig.control())
    expected = rig.run(base, conds)
    for _ in range(2):
        comfy.model_management.unload_all_models()
        assert torch.equal(rig.run(base, conds), expected)


@pytest.fixture(scope="module")
def add_controlnet(rig):
    """Adds a random ControlNet of core's class, of the base's size, to positive and negative, as Apply ControlNet does."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    import nodes
    from tiny import randomise

    unet = rig.fixture().meta["B"]["config_unet"]
    levels = len(unet["channel_mult"])
    torch.manual_seed(5)
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(
            image_size=32,
            in_channels=4,
            hint_channels=3,
            model_channels=unet["model_channels"],
            num_res_blocks=[unet["num_res_blocks"]] * levels,
            channel_mult=unet["channel_mult"],
            transformer_depth=[0] * levels * unet["num_res_blocks"],
            transformer_depth_middle=-1,
            num_heads=2,
            use_spatial_transformer=True,
            context_dim=rig.CONTEXT,
            num_classes="sequential",
            adm_in_channels=rig.VECTOR,
            operations=comfy.ops.manual_cast,
        )
        randomise(network)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    hints = torch.rand(rig.FRAMES, rig.SIDE, rig.SIDE, 3, generator=torch.Generator().manual_seed(6))

    def add(positive, negative, strength=0.7):
        return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hints, strength, 0.0, 1.0)

    return add


def add_ours(conds, control):
    """As SAFM Trajectory Fuse does it, behind what `conds` carries."""
    previous = conds[0][0][1].get("control")
    control.set_previous_controlnet(previous)
    return tuple([[text, {**extras, "control": control}] for text, extras in items] for items in conds)


@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_with_a_controlnet_of_core_in_either_order(rig, base, add_controlnet, cfg):
    ours = rig.run(base, rig.conds(rig.control()), cfg=cfg)
    theirs = rig.run(base, add_controlnet(*rig.conds()), cfg=cfg)
    before = rig.run(base, add_ours(add_controlnet(*rig.conds()), rig.control()), cfg=cfg)
    behind = rig.run(base, add_controlnet(*rig.conds(rig.control())), cfg=cfg)
    assert difference(before, behind) < CLOSE
    assert min(difference(before, ours), difference(before, theirs)) > 1e-3
    assert difference(rig.run(base, add_controlnet(*rig.conds(rig.control()), strength=1e-9), cfg=cfg), ours) < CLOSE


def windowed(model, length, overlap=1):
    import tiny_run

    return tiny_run.windowed(model, length, overlap, anchor=False)


@pytest.mark.parametrize("length", [CLIP, CLIP + 2])
def test_a_window_as_long_as_the_clip_or_longer_changes_nothing(rig, base, length):
    conds = rig.conds(rig.control(rig.Hints(CLIP)), CLIP)
    assert torch.equal(rig.run(windowed(base, length), conds, CLIP), rig.run(base, conds, CLIP))


def test_a_last_window_that_would_be_shorter_ends_with_the_clip(rig, base):
    """20 frames in windows of 14: the frames that only the second window makes are those of a clip of the last 14."""
    frames = 20
    noise = rig.random(frames, 4, 8, 8, seed=31)
    hints = rig.Hints(frames, moving=True)

    class Tail:
        frames, pixels = CLIP, rig.SIDE**2

        def hints(self, width, height):
            full = hints.hints(width, height)
            return type(full)(full.content[-CLIP:], full.motion[-CLIP:], full.edit_region[-CLIP:])

    whole = rig.run(windowed(base, CLIP), rig.conds(rig.control(hints), frames), frames, steps=1, noise=noise)
    tail = rig.run(base, rig.conds(rig.control(Tail()), CLIP), CLIP, steps=1, noise=noise[-CLIP:])
    only = frames - CLIP
    assert difference(whole[-only:], tail[-only:]) < CLOSE
