"""The benchmarks against plain bases and peers, in a small size: what they compare, and the lines that they print."""

from __future__ import annotations

import re

import pytest
import torch

LINE = re.compile(r"ratio \d+\.\d\d case=(\S+) threads=1 range=\d+\.\d\d\.\.\d+\.\d\d( \w+=[\d./]+)*")
FRAMES, LATENT = 4, 8


@pytest.fixture(scope="module")
def peers(comfy_session):
    from benchmarks import peers

    return peers


@pytest.fixture(scope="module")
def size(peers):
    return peers.Size((64, 128, 128, 128), image=40, projection=64)


@pytest.fixture(params=["sd15", "sd21"])
def contest(request, peers, size):
    with torch.inference_mode():
        torch.manual_seed(0)
        yield peers.CONTESTS[request.param](size, FRAMES)


def test_all_four_run_on_cond_and_uncond(contest):
    from benchmarks.pairs import Stepper

    made, prompts = [], contest.conditionings(LATENT)
    for model in (contest.plain, contest.ours):
        hook = model.model.diffusion_model.register_forward_hook(lambda *call: made.append(call[2]))
        Stepper(model, *prompts, torch.randn(FRAMES, 4, LATENT, LATENT)).step()
        hook.remove()
    rows, text = torch.randn(2 * FRAMES, 4, LATENT, LATENT), torch.randn(2, 77, contest.text_width)
    made += [contest.peer_plain(rows, text), contest.peer(rows, text)]
    frames = (2 * FRAMES, 4, LATENT, LATENT)
    assert [tuple(output.shape) for output in made] == [frames, frames, frames, (2, 4, FRAMES, LATENT, LATENT)]
    assert all(torch.isfinite(output).all() for output in made)


def test_both_have_the_same_weights(peers, contest):
    from magdiff_core.weights.unet_names import UnetNames

    theirs = contest.peer_plain.__closure__[0].cell_contents.state_dict()
    names, own = UnetNames.of(theirs), contest.plain.model.diffusion_model.state_dict()
    assert {names.ldm(key) for key in theirs} == own.keys()
    assert all(own[names.ldm(key)].data_ptr() == value.data_ptr() for key, value in theirs.items())


def test_what_is_measured_reads_all_tokens(peers, size):
    """16 tokens of each frame in every cross-attention of the AnimateDiff contest; 16 a frame in the other."""
    from benchmarks.pairs import Stepper
    from magdiff_core.host.call import Call

    seen = {}
    with torch.inference_mode():
        for name, build in peers.CONTESTS.items():
            contest = build(size, FRAMES)
            stepper = Stepper(contest.ours, *contest.conditionings(LATENT), torch.randn(FRAMES, 4, LATENT, LATENT))
            with pytest.MonkeyPatch.context() as patch:
                project = Call.image_key_value

                def watch(call, site, like, name=name, project=project):
                    key, value = project(call, site, like)
                    seen.setdefault(name, []).append(tuple(key.shape[:2]))
                    return key, value

                patch.setattr(Call, "image_key_value", watch)
                stepper.step()
    assert seen["sd15"] == 16 * [(2, 16 * FRAMES)]
    assert seen["sd21"] == 16 * [(2 * FRAMES, 16)]


def test_lines(contest):
    lines = contest.run(LATENT, 2, 1)
    cases = [LINE.fullmatch(words)[1] for words in lines]
    assert len(set(cases)) == 2 and all(case.endswith("_8x8") for case in cases)
    assert re.search(r" below_peer=[012]/2$", lines[0]) and "below_peer" not in lines[1]


def test_rounds_begin_with_another_step_each():
    from benchmarks.pairs import interleave, ratios

    ran = []

    def step(name: str, seconds: float):
        return lambda: (ran.append(name), seconds)[1]

    measured = interleave([step("a", 1.0), step("b", 1.5)], 2)
    assert "".join(ran) == "ab" + "ab" + "ba"
    assert measured == [(1.0, 1.5)] * 2 and ratios(*zip(*measured, strict=True)) == [1.5, 1.5]


def test_the_step_benchmark(comfy_session, capsys):
    from benchmarks import step

    unet = {**step.SD21_UNET, "model_channels": 64, "context_dim": 32, "channel_mult": [1, 1, 1, 1]}
    with torch.inference_mode():
        step.measure(unet, [8], 2, 2, 1)
    assert LINE.fullmatch(capsys.readouterr().out.strip())[1] == "magdiff_8x8"
