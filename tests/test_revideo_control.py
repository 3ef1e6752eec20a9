"""The control branch as ComfyUI's control object: batching, steps, windows, chains, what outlives a run, what is refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.nn import Linear

CLOSE = 1e-4
"""Largest difference, over the largest value, between two ways to compute the same thing."""


@pytest.fixture(scope="module")
def rig(comfy_session):
    import video_run

    return video_run


@pytest.fixture(scope="module")
def base(rig):
    return rig.base()


@pytest.fixture(scope="module")
def plain(rig, base):
    return rig.run(base, rig.conds())


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class Count:
    """Counts calls of a module, and what batch it saw."""

    def __init__(self, module: torch.nn.Module):
        self.batches: list[int] = []
        self._hook = module.register_forward_pre_hook(lambda module, args: self.batches.append(args[0].shape[0]))

    def __enter__(self) -> list[int]:
        return self.batches

    def __exit__(self, *error) -> None:
        self._hook.remove()


def test_it_changes_the_result_and_strength_scales_it(rig, base, plain):
    full, half = (rig.run(base, rig.conds(rig.control(strength=s))) for s in (1.0, 0.5))
    assert difference(full, plain) > 0.01
    assert 0.0 < difference(half, plain) < difference(full, plain)


def test_strength_zero_is_the_plain_model_exactly(rig, base, plain):
    assert torch.equal(rig.run(base, rig.conds(rig.control(strength=0.0))), plain)


def test_encoders_run_once_a_run_and_gamma_at_every_step(rig, base):
    control = rig.control(rig.Hints(frames=6))
    model = control.control_model
    with Count(model.content_encoder) as content, Count(model.motion_encoder) as motion, Count(model.safm.weight_encoder) as gamma:
        rig.run(base, rig.conds(control, 6), 6, steps=3)
    # six frames in parts of four; a region that stands still needs one frame of H
    assert content == motion == [4, 2]
    assert gamma == [1, 1, 1]


def test_a_moving_region_has_a_gamma_for_each_frame(rig, base):
    control = rig.control(rig.Hints(moving=True))
    with Count(control.control_model.safm.weight_encoder) as gamma:
        rig.run(base, rig.conds(control), steps=2)
    assert gamma == [rig.FRAMES] * 2


def test_one_call_serves_positive_and_negative(rig, base):
    control = rig.control()
    with Count(control.control_model.trunk) as batches:
        rig.run(base, rig.conds(control), steps=2)
    assert batches == [2 * rig.FRAMES] * 2


def test_batched_or_not_is_the_same(rig, base):
    together = rig.run(base, rig.conds(rig.control()))
    first = rig.control()
    apart = rig.run(base, rig.conds(first, negative_control=first.copy().set_cond_hint(None)))
    assert difference(apart, together) < CLOSE


def test_without_guidance_only_the_positive_runs(rig, base):
    control = rig.control()
    with Count(control.control_model.trunk) as batches:
        got = rig.run(base, rig.conds(control), steps=2, cfg=1.0)
    assert batches == [rig.FRAMES] * 2
    assert difference(got, rig.run(base, rig.conds(), cfg=1.0)) > 0.01


def test_it_acts_in_its_part_of_the_steps(rig, base):
    def times(start: float, end: float) -> list[float]:
        seen = []
        control = rig.control(percents=(start, end))
        control.control_model.trunk.register_forward_pre_hook(lambda module, args: seen.append(float(args[1][0])))
        rig.run(base, rig.conds(control), steps=4)
        return seen

    whole, early, late = times(0.0, 1.0), times(0.0, 0.5), times(0.5, 1.0)
    assert len(whole) == 4 and whole == sorted(whole, reverse=True)
    assert 0 < len(early) < 4
    assert early + late == whole
    assert times(0.0, 0.0) == []


def test_two_in_a_chain_add_up(rig, base):
    def chained(first, second):
        return rig.conds(rig.control(strength=second).set_previous_controlnet(rig.control(strength=first)))

    two_halves = rig.run(base, chained(0.5, 0.5), steps=1)
    assert difference(two_halves, rig.run(base, rig.conds(rig.control()), steps=1)) < CLOSE
    assert torch.equal(rig.run(base, chained(0.0, 1.0)), rig.run(base, rig.conds(rig.control())))


def test_a_chain_keeps_acting_where_the_last_one_does_not(rig, base):
    last = rig.control(rig.Hints(seed=50), percents=(0.0, 0.0)).set_previous_controlnet(rig.control())
    last.timestep_percent_range = (1.0, 1.0)
    assert torch.equal(rig.run(base, rig.conds(last)), rig.run(base, rig.conds(rig.control())))


def test_the_three_fusions_differ(rig, base):
    safm, total, timeless = (rig.run(base, rig.conds(rig.control(fusion=f))) for f in ("safm", "direct sum", "no time"))
    assert difference(total, safm) > 1e-3
    assert difference(timeless, safm) > 1e-3


LONG, WINDOW = 8, 3


def windowed(model, length=WINDOW, overlap=1):
    import tiny_run

    return tiny_run.windowed(model, length, overlap, anchor=False)


def test_one_window_over_the_clip_equals_the_run_without_windows(rig, base):
    conds = rig.conds(rig.control())
    assert torch.equal(rig.run(windowed(base, rig.FRAMES), conds), rig.run(base, conds))


@pytest.mark.parametrize("moving", [False, True])
def test_each_window_sees_the_hints_of_its_own_frames(rig, base, moving):
    """The last window of a long clip equals a clip of its own made of the same frames."""
    noise = rig.random(LONG, 4, 8, 8, seed=31)
    hints = rig.Hints(LONG, moving=moving)
    whole = rig.run(windowed(base, overlap=0), rig.conds(rig.control(hints), LONG), LONG, steps=1, noise=noise)

    class Tail:
        frames, pixels = WINDOW, rig.SIDE**2

        def hints(self, width, height):
            full = hints.hints(width, height)
            return type(full)(full.content[-WINDOW:], full.motion[-WINDOW:], full.edit_region[-WINDOW:])

    alone = rig.run(base, rig.conds(rig.control(Tail()), WINDOW), WINDOW, steps=1, noise=noise[-WINDOW:])
    # the last but one window overlaps all of the last one but its end
    assert difference(whole[-1:], alone[-1:]) < CLOSE


def test_encoders_run_once_whatever_the_windows(rig, base):
    control = rig.control(rig.Hints(LONG))
    with Count(control.control_model.content_encoder) as content:
        rig.run(windowed(base), rig.conds(control, LONG), LONG, steps=2)
    assert content == [4, 4]


def test_nothing_outlives_a_run(rig, base):
    control = rig.control()
    kept = []
    control.control_model.content_encoder.register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    rig.run(base, rig.conds(control))
    gc.collect()
    assert [ref() for ref in kept] == [None]
    assert control._model is None


def test_nothing_outlives_a_run_that_failed(rig, base):
    control = rig.control()
    kept = []
    control.control_model.content_encoder.register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))

    def stop(*_):
        raise KeyboardInterrupt

    hook = base.model.diffusion_model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        rig.run(base, rig.conds(control))
    hook.remove()
    gc.collect()
    assert [ref() for ref in kept] == [None]
    assert control._model is None
    assert not base.callbacks.get("on_cleanup")


def test_a_copy_makes_the_same(rig, base):
    control = rig.control(strength=0.7, fusion="no time")
    assert torch.equal(rig.run(base, rig.conds(control.copy())), rig.run(base, rig.conds(control)))


def test_weights_in_half_precision_are_computed_in_the_precision_of_the_base(rig, base):
    control = rig.control()
    exact = rig.run(base, rig.conds(control))
    for dtype in (torch.float16, torch.bfloat16):
        narrow = rig.control()
        narrow.control_model.to(dtype)
        got = rig.run(base, rig.conds(narrow))
        # the stored weights are exact in float16, but core's blend of space and time is rounded
        assert difference(got, exact) < (1e-3 if dtype == torch.float16 else 0.2)


def test_the_memory_that_it_needs_is_counted(rig, base):
    control = rig.control(rig.request())
    models, memory = control.get_models(), control.inference_memory_requirements(torch.float16)
    assert models == [control.patcher]
    assert memory == 3 * 4 * 4 * rig.SIDE * rig.SIDE * 2
    chained = rig.control(rig.request()).set_previous_controlnet(control)
    assert chained.inference_memory_requirements(torch.float16) == 2 * memory
    assert len(chained.get_models()) == 2


PUBLISHED = {
    # tensors and parameters of the released control branch, part by part
    "trunk.time_embed": (4, 2_050_560),
    "trunk.label_emb": (4, 2_624_000),
    "trunk.input_blocks": (522, 479_208_974),
    "trunk.middle_block": (99, 185_571_843),
    "motion_encoder": (16, 1_086_336),
    "content_encoder": (16, 1_086_480),
    "safm": (18, 2_008_256),
    "zero_convs": (24, 9_840_000),
    "zero_conv_middle": (2, 1_639_680),
}


def test_the_published_size(comfy_session):
    """Built of SVD's own layout, each part has as many tensors and parameters as the released one. No memory is taken."""
    import comfy.model_detection
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from magdiff_core.host.revideo_model import ReVideoControlModel
    from magdiff_core.host.revideo_trunk import trunk_config
    from magdiff_core.motion.encoders import WIDTHS

    layout = {
        "in_channels": 8,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": 1024,
        "adm_in_channels": 768,
        "num_classes": "sequential",
        "num_heads": -1,
        "num_head_channels": 64,
        "image_size": 32,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "legacy": False,
        "use_temporal_resblock": True,
        "use_temporal_attention": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "video_kernel_size": [3, 1, 1],
    }
    unet = UNetModel(**layout, device="meta").state_dict()
    assert (len(unet), sum(value.numel() for value in unet.values())) == (1428, 1_524_623_082)
    assert isinstance(comfy.model_detection.model_config_from_unet(unet, ""), comfy.supported_models.SVD_img2vid)

    parts = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    config = trunk_config({key: value for key, value in unet.items() if key.startswith(parts)})
    branch = ReVideoControlModel(config, WIDTHS).state_dict()
    for name, expected in PUBLISHED.items():
        own = [value for key, value in branch.items() if key.startswith(f"{name}.")]
        assert (len(own), sum(value.numel() for value in own)) == expected, name
    assert (len(branch), sum(value.numel() for value in branch.values())) == (705, 685_116_129)
    for key, value in unet.items():
        if key.startswith(parts):
            assert branch[f"trunk.{key}"].shape == value.shape


def test_attention_over_one_token_takes_the_short_way(rig):
    from comfy.ldm.modules import attention

    model = rig.branch().model
    x, context = rig.random(2 * rig.FRAMES, 16, 32, seed=1), rig.random(2 * rig.FRAMES, 1, rig.CONTEXT, seed=2)
    short = model.trunk.input_blocks[1][1].transformer_blocks[0].attn2
    whole = attention.CrossAttention.forward(short, x, context)
    assert difference(short(x, context), whole) < CLOSE
    two = rig.random(2 * rig.FRAMES, 2, rig.CONTEXT, seed=3)
    assert torch.equal(short(x, two), attention.CrossAttention.forward(short, x, two))
    with Count(short.to_q) as queries:
        short(x, context)
    assert queries == []


def test_another_number_of_frames_is_refused(rig, base):
    with pytest.raises(ValueError, match="the LATENT has 3 frames, source_frames of SAFM Trajectory Fuse 5"):
        rig.run(base, rig.conds(rig.control(rig.Hints(frames=5))))


def test_another_base_is_refused(rig, comfy_session):
    import tiny

    model = tiny.tiny_model()
    noise = torch.zeros(rig.FRAMES, 4, 8, 8)
    text = torch.zeros(1, 7, tiny.CONTEXT)
    conds = [[text, {"control": rig.control()}]], [[text, {}]]
    with pytest.raises(ValueError, match="takes 8 channels to 32, this MODEL 4 to 32: load the base"):
        rig.run(model, conds, noise=noise)


def test_a_trunk_of_another_base_is_refused(rig, base):
    from magdiff_core.host.control_object import check_base

    control = rig.control().control_model
    control.trunk.input_blocks[1][0].emb_layers[1] = Linear(64, 32)
    with pytest.raises(ValueError, match=r"1 layers of its trunk differ from this MODEL, such as input_blocks\.1\.0\.emb_layers"):
        check_base(base.model.diffusion_model, control)
    with pytest.raises(ValueError, match="fits UNets, this MODEL is a Linear"):
        check_base(Linear(2, 2), control)
