"""DynamiCrafter against what its own code stored, and what its structure asks of the host."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"

pytestmark = pytest.mark.usefixtures("comfy_session")


@pytest.mark.parametrize(("name", "tensors"), [("dynamicrafter", 44), ("dynamicrafter_topology", 51)])
def test_parity(name, tensors):
    from magdiff_core.host.parity.command import run

    lines: list[str] = []
    assert run(FIXTURES / f"{name}.safetensors", lines.append) == 0
    assert lines[-1] == f"{tensors} covered, 0 over, 0 not covered"


# --- tokens by picture ------------------------------------------------------------------------------------------------------


def call(image_tokens="picture", share=2, clips=2, frames=3, negative=(), entries=1, has_negative=False, black=False):
    """A call whose image stream copies its tokens: entry e holds the numbers 10 e, 10 e + 1, ..."""
    from magdiff_core.adapter import AdapterConfig
    from magdiff_core.host.call import Call, PartStrengths
    from magdiff_core.host.conds import SubjectTokens
    from magdiff_core.host.run_cache import NoCache

    class Stream:
        @staticmethod
        def key_value(tokens):
            return tokens, tokens

    config = AdapterConfig(image_tokens=image_tokens, tokens_per_frame=share)
    streams = type("Streams", (), {"find": lambda self, site: Stream})()
    adapter = type("Adapter", (), {"config": config, "projector": None, "apa": streams})
    count = entries + has_negative + black
    tokens = 10.0 * torch.arange(count)[:, None] + torch.arange(6)
    return Call(
        adapter=adapter,
        strengths=PartStrengths(),
        unet=None,
        clips=clips,
        frames=frames,
        window=tuple(range(frames)),
        total_frames=frames,
        cache=NoCache,
        tokens=SubjectTokens({"last": tokens[None, ..., None]}, black, has_negative),
        negative=negative,
    )


def read(call) -> list[list[float]]:
    key, value = call.image_key_value("site", torch.zeros(1))
    assert torch.equal(key, value)
    return key[..., 0].tolist()


def test_each_frame_reads_its_share_of_one_picture():
    assert read(call()) == [[0, 1], [2, 3], [4, 5]] * 2


def test_each_frame_reads_its_share_of_its_own_picture():
    assert read(call(entries=3, clips=1)) == [[0, 1], [12, 13], [24, 25]]


def test_another_length_reads_all_tokens():
    """As the released code does it: without a share for each frame all frames read everything."""
    assert read(call(frames=4)) == [[0, 1, 2, 3, 4, 5]] * 2


def test_the_anchor_before_a_window_takes_no_share():
    state = call(frames=4, clips=1)
    state.anchored = True
    assert read(state) == [[0, 1], [0, 1], [2, 3], [4, 5]]


def test_a_length_without_shares_is_said(run, model, caplog):
    weights = run.adapter_weights(model)
    loaded = run.adapter(model, weights, image_tokens="picture", tokens_per_frame=1)
    adapted = run.apply_adapter(model, loaded, run.PartStrengths())
    conds = run.wired(tokens=run.tokens(black=False))
    run.run(adapted, *conds, steps=1)
    assert caplog.text == ""
    run.run(adapted, *conds, steps=1, frames=3)
    assert "image tokens for 4 frames, 3 are made at once" in caplog.text
    caplog.clear()
    run.run(run.windowed(adapted, length=4), *conds, steps=1, frames=8)
    assert caplog.text == ""


def test_all_frames_read_one_picture():
    assert read(call(share=0)) == [[0, 1, 2, 3, 4, 5]] * 2
    assert read(call(share=0, entries=3, clips=1)) == [[e + i for i in range(6)] for e in (0, 10, 20)]


def test_the_negative_reads_its_own_picture():
    assert read(call(negative=(True, False), has_negative=True)) == [[10, 11], [12, 13], [14, 15], [0, 1], [2, 3], [4, 5]]
    assert read(call(negative=(True,), clips=1, has_negative=True, share=0)) == [[10, 11, 12, 13, 14, 15]]
    assert read(call(negative=(False,), clips=1, has_negative=True, share=0)) == [[0, 1, 2, 3, 4, 5]]


def test_first_and_last_picture_read_the_first():
    assert read(call(entries=2, share=0, clips=1)) == [[0, 1, 2, 3, 4, 5]]


def test_black_frames_are_read_only_by_whole_clips():
    assert read(call(image_tokens="clip", black=True, clips=1)) == [[0, 1, 2, 3, 4, 5, *[10, 11, 12, 13, 14, 15] * 2]]
    assert read(call(share=0, black=True, clips=1)) == [[0, 1, 2, 3, 4, 5]]


def test_a_wrong_number_of_pictures():
    with pytest.raises(ValueError, match="holds 4 subject frames, the clip has 6 frames.*encode 1 picture, 2 .* or 6"):
        read(call(entries=4, frames=6))


# --- cond and uncond in one batch --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    import tiny_run

    return tiny_run


@pytest.fixture(scope="module")
def model(run):
    return run.tiny_model()


@pytest.fixture(scope="module")
def adapted(run, model):
    loaded = run.adapter(model, image_tokens="picture", negative_picture="grey", clip_norm=False)
    return run.apply_adapter(model, loaded, run.PartStrengths())


def test_a_negative_of_its_own_runs_in_the_same_batch(run, adapted, monkeypatch):
    from magdiff_core.host.conds import SubjectTokens

    tokens = SubjectTokens({"last": run.random(1, 2, 9, 24, seed=5)}, False, True)
    positive, negative = run.prompts()
    conds = run.attach(positive, tokens=tokens), run.attach(negative, negative=True, tokens=tokens)
    with run.unet_calls(adapted) as calls:
        together = run.run(adapted, *conds)
    assert {tuple(sorted(clips)) for clips, _ in calls} == {(0, 1)}

    # Two passes, as when memory is short: each reads its own entry.
    fits = lambda shape, cond_shapes=None: 0 if shape[0] <= run.FRAMES else 1e30  # noqa: E731
    monkeypatch.setattr(adapted.model, "memory_required", fits)
    with run.unet_calls(adapted) as calls:
        apart = run.run(adapted, *conds)
    assert {tuple(clips) for clips, _ in calls} == {(0,), (1,)}
    assert run.difference(apart, together) < run.BATCHING

    same = SubjectTokens({"last": tokens.layers["last"][:, :1]}, False)
    monkeypatch.undo()
    other = run.run(adapted, run.attach(positive, tokens=same), run.attach(negative, tokens=same))
    assert run.difference(other, together) > 1e-3, "the negative's picture matters"


# --- the picture's latent ----------------------------------------------------------------------------------------------------


def subject_latents(run, pictures, frames):
    from magdiff_core.host.conds import GENERATE, SubjectLatents

    entries = pictures + (1 if frames > 1 else 0)
    return SubjectLatents((run.random(1, entries, 4, 8, 8, seed=7),), frames, GENERATE, pictures)


def terms(run, model, pictures, window=None, frames=4) -> torch.Tensor:
    """The subject term of each frame of a window, `[F, C0, h, w]`, and of each entry of the latents."""
    from magdiff_core.host.call import Call
    from magdiff_core.host.conds import LatentsOfArea
    from magdiff_core.host.run_cache import NoCache

    weights = {key: value for key, value in run.adapter_weights(model).items() if not key.startswith("hfa.level")}
    adapter = run.adapter(model, weights, subject_frames="all").patcher.model
    window = tuple(range(frames)) if window is None else window
    latents = subject_latents(run, pictures, frames)
    state = Call(
        adapter=adapter, strengths=run.PartStrengths(), unet=None, clips=1, frames=len(window), window=window,
        total_frames=frames, cache=NoCache, latents=LatentsOfArea(latents, None), scale_latent=lambda x: x,
    )  # fmt: skip
    return state.subject_term(torch.zeros(1))[0], adapter.hfa([latents.levels[0][0]])


def test_one_picture_stands_in_every_frame(run, model):
    by_frame, by_entry = terms(run, model, pictures=1)
    assert all(torch.equal(frame, by_entry[0]) for frame in by_frame)


def test_two_pictures_stand_at_the_ends(run, model):
    by_frame, by_entry = terms(run, model, pictures=2)
    assert torch.equal(by_frame[0], by_entry[0]) and torch.equal(by_frame[3], by_entry[1])
    assert not by_frame[1:3].any(), "zeros, not black"
    by_frame, by_entry = terms(run, model, pictures=2, window=(2, 3))
    assert not by_frame[0].any() and torch.equal(by_frame[1], by_entry[1])


def test_two_pictures_for_weights_that_take_one(run):
    adapted = run.adapted(run.tiny_model())
    positive, negative = (run.attach(cond, latents=subject_latents(run, 2, 4)) for cond in run.prompts())
    with pytest.raises(ValueError, match="2 pictures .* starts a clip from one"):
        run.run(adapted, positive, negative)


# --- frame rate --------------------------------------------------------------------------------------------------------------


def with_frame_rate(run, model, **changes):
    width, channels = model.model.diffusion_model.time_embed[2].out_features, model.model.diffusion_model.model_channels
    weights = run.adapter_weights(model)
    weights |= {"temporal.fps_embedding.0.weight": run.random(width, channels, seed=1) / 5}
    weights |= {"temporal.fps_embedding.2.weight": run.random(width, width, seed=2) / 5}
    weights |= {f"temporal.fps_embedding.{layer}.bias": run.random(width, seed=3 + layer) for layer in (0, 2)}
    return run.apply_adapter(model, run.adapter(model, weights, fps=8.0, **changes), run.PartStrengths())


def test_frame_rate_of_the_user(run, model):
    from magdiff_core.host.sampling import at_frame_rate

    adapted = with_frame_rate(run, model)
    own = run.run(adapted, *run.prompts())
    assert torch.equal(run.run(at_frame_rate(adapted, 8), *run.prompts()), own)
    assert run.difference(run.run(at_frame_rate(adapted, 24), *run.prompts()), own) > 1e-3
    assert torch.equal(run.run(adapted, *run.prompts()), own), "the model itself keeps its rate"
    assert at_frame_rate(adapted, 0) is adapted
    with pytest.raises(ValueError, match="frame_rate is 24, .*set it to 0"):
        at_frame_rate(run.adapted(model), 24)


def test_sinusoid_is_that_of_timesteps():
    from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

    from magdiff_core.temporal.fps_embedding import rate_sinusoid

    torch.testing.assert_close(rate_sinusoid(24.0, 32, torch.zeros(1)), timestep_embedding(torch.tensor([24.0]), 32))


# --- encoding ----------------------------------------------------------------------------------------------------------------


def test_pictures_that_the_encoder_gets(run, model, monkeypatch):
    from magdiff_core.host import encode

    seen = []

    class Output(dict):
        __getattr__ = dict.__getitem__
        __setattr__ = dict.__setitem__

    class Encoder:
        @staticmethod
        def encode_image(pictures, crop):
            seen.append((pictures, crop))
            states = torch.zeros(len(pictures), 9, 24)
            return Output(last_hidden_state=states, penultimate_hidden_states=states, image_embeds=states[:, 0])

    loaded = run.adapter(model, image_tokens="picture", negative_picture="grey")
    config = loaded.config
    encoder = dataclasses.replace(config.image_encoder, crop=False, channels="rgb")
    loaded.patcher.model.config = dataclasses.replace(config, image_encoder=encoder)
    adapted = run.apply_adapter(model, loaded, run.PartStrengths())
    picture = torch.rand(1, 8, 12, 3)
    output = encode.encode_subject_tokens(adapted, Encoder, picture)
    (pictures, crop), tokens = seen[0], encode.subject_tokens(output)
    assert torch.equal(pictures, torch.cat((picture, torch.full_like(picture, 0.5)))) and not crop
    assert (tokens.subject_entries, tokens.negative_entry, tokens.black_entry) == (1, True, False)


def test_the_node_marks_the_negative(run, pack):
    """Positive and negative carry the same tokens, and only the latter reads the negative's picture."""
    from comfy.clip_vision import Output

    output = Output()
    output.last_hidden_state = output.penultimate_hidden_states = run.random(1 + 1, 9, 24, seed=6)
    output.image_embeds = run.random(2, 24, seed=6)
    output.negative_entry, output.black_entry = True, False
    sides = pack["MagDiffAPAConditioning"].execute(*run.prompts(), output, 1.0, 1.0, 0.0, 1.0, "adaptive").args
    conds = [extras["model_conds"]["magdiff_tokens"] for ((_, extras),) in sides]
    assert [type(cond).__name__ for cond in conds] == ["SubjectTokensCond"] * 2 and conds[0].can_concat(conds[1])
    assert conds[1].concat([conds[0]]).negative == (True, False)
    assert conds[1].concat([conds[0]]).tokens.subject_entries == 1
