"""The trainer: resuming gives the same bits, files are never half written, and every trained tensor learns."""

from __future__ import annotations

import pytest
import torch
from training_parts import small_config

from magdiff_core.train.checkpoint import MovingAverage, load_state, save_state, write_atomically
from magdiff_core.train.loop import Schedule, train


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "weights.bin"
    write_atomically(target, lambda path: path.write_bytes(b"old"))

    def fail(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]


def test_state_files_hold_data_only(tmp_path):
    save_state(tmp_path / "s.pt", {"a": torch.ones(2), "b": {"c": [1, 2.5, None, "x"]}})
    state = load_state(tmp_path / "s.pt")
    assert torch.equal(state["a"], torch.ones(2)) and state["b"] == {"c": [1, 2.5, None, "x"]}


def test_moving_average_follows_its_formula():
    values = {"w": torch.zeros(3)}
    average = MovingAverage(values, decay=0.5)
    expected = 0.0
    for step in range(1, 20):
        average.update({"w": torch.full((3,), float(step))})
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(average.values["w"], torch.full((3,), expected))


def test_schedule_warms_up_holds_and_falls():
    schedule = Schedule(rate=1.0, steps=1000, warm_up=100)
    assert schedule.rate_at(0, 0.0) == pytest.approx(0.01)
    assert schedule.rate_at(100, 0.1) == schedule.rate_at(660, 0.66) == 1.0
    assert schedule.rate_at(833, 5 / 6) == pytest.approx(0.5)
    assert schedule.progress(250, 0.0) == 0.25
    assert Schedule(rate=1.0, steps=1000, seconds=10.0).progress(250, 9.0) == 0.9


def test_a_run_without_an_end_and_a_loss_that_is_not_finite_are_refused(tmp_path):
    parameter = {"w": torch.nn.Parameter(torch.ones(1))}
    with pytest.raises(ValueError, match="--steps or --seconds"):
        train(parameter, lambda generator: parameter["w"].sum(), Schedule(1.0), tmp_path)
    with pytest.raises(FloatingPointError, match="step 0"):
        train(parameter, lambda generator: parameter["w"].sum() * float("nan"), Schedule(1.0, steps=2), tmp_path)


@pytest.fixture(scope="module")
def config(comfy_session):
    return small_config()


@pytest.fixture(scope="module")
def autoencoder_file(config, tmp_path_factory):
    from magdiff_core.train import autoencoder

    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder.measure, kept = lambda *_, **__: {}, autoencoder.measure
    autoencoder.standardise, kept_too = lambda *_, **__: None, autoencoder.standardise
    try:
        autoencoder.run(folder, steps=1, batch=2, config=config["autoencoder"])
    finally:
        autoencoder.measure, autoencoder.standardise = kept, kept_too
    return folder / "autoencoder.pt"


@pytest.fixture(scope="module")
def encoder_file(config, tmp_path_factory):
    from magdiff_core.train import subject_encoder

    folder = tmp_path_factory.mktemp("encoder")
    subject_encoder.run(folder, steps=1, batch=2, config=config)
    return folder / "subject_encoder.pt"


def final_state(folder):
    state = load_state(folder / "state.pt")
    return {key: value for key, value in state.items() if key != "elapsed"}


def assert_equal(first, second, where="state"):
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second)):
            assert_equal(*pair, f"{where}.{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def test_a_resumed_run_ends_in_the_same_bits(config, autoencoder_file, encoder_file, tmp_path, monkeypatch):
    from magdiff_core.train import diffusion

    # both an opening batch and a later one, each interrupted in the middle
    monkeypatch.setattr(diffusion, "PROMPT_BATCHES", 1)

    def run(name, steps, resume=False):
        # the schedule must be the same in all runs, so an early end is an interruption
        monkeypatch.setattr(Schedule, "progress", lambda self, step, elapsed: 1.0 if step >= steps else 0.1)
        diffusion.run(tmp_path / name, autoencoder_file, encoder_file, steps=4, batch=1, seed=3, resume=resume, config=config)

    run("whole", 4)
    run("parts", 1)
    run("parts", 3, resume=True)
    run("parts", 4, resume=True)
    assert_equal(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    from safetensors.torch import load_file

    for name in ("magdiff-mini.safetensors", "magdiff-mini-adapter.safetensors"):
        assert_equal(load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name))
    trained = load_state(encoder_file)["weights"]
    written = load_file(tmp_path / "whole" / "magdiff-mini.safetensors")
    assert_equal({n: v.half() for n, v in trained.items() if n in written}, {n: v for n, v in written.items() if n in trained})
    assert any(name in written for name in trained)
    assert not any("word_readout" in name for name in written)


def test_training_goes_on_from_a_pair_of_model_files(config, autoencoder_file, encoder_file, tmp_path):
    from magdiff_core.train import diffusion
    from magdiff_core.train.export import read_files

    diffusion.run(tmp_path / "a", autoencoder_file, encoder_file, steps=1, batch=2, config=config)
    begun = read_files(tmp_path / "a")
    stage = diffusion.Stage(config, seed=5, start=begun)
    for given, taken in zip(begun, stage.state_dicts({})):
        assert given.keys() == taken.keys()
        assert all(torch.equal(value, taken[name]) for name, value in given.items())

    kinds = []
    diffusion_draw = diffusion.draw_batch
    with pytest.MonkeyPatch.context() as patch:
        draw = lambda *given, **more: kinds.append(given[3:]) or diffusion_draw(*given, **more)  # noqa: E731
        patch.setattr(diffusion, "draw_batch", draw)
        diffusion.run(tmp_path / "b", start_from=tmp_path / "a", steps=1, batch=2, config=config)
    assert kinds == [()]  # any kind: the batches of prompts alone are for a fresh model
    moved = [
        max(float((after[name] - value).abs().max()) for name, value in before.items() if value.is_floating_point())
        for before, after in zip(begun, read_files(tmp_path / "b"))
    ]
    assert all(0 < step < 0.01 for step in moved)  # one step of the warm-up, not other weights

    for wrong in ({"autoencoder": autoencoder_file}, {"start_from": tmp_path / "a", "encoder": encoder_file}, {}):
        with pytest.raises(ValueError, match="--start-from"):
            diffusion.run(tmp_path / "c", steps=1, config=config, **wrong)
    with pytest.raises(OSError):
        diffusion.run(tmp_path / "c", start_from=tmp_path / "nothing", steps=1, config=config)


def test_the_subject_encoder_learns_to_tell_pictures_apart(config):
    """From one batch seen again and again: the readout's error falls, and both modules move."""
    from magdiff_core.data import procedural
    from magdiff_core.host import own_checkpoint
    from magdiff_core.host.training import encode_pictures
    from magdiff_core.train import batches, diffusion, subject_encoder

    stage = diffusion.Stage(config, seed=1)
    projector = stage.training.adapter.projector.requires_grad_(True)
    encoder = stage.modules[own_checkpoint.IMAGE_PREFIX].requires_grad_(True)
    readout = subject_encoder.Readout(projector.latents.shape[1], projector.norm_out.weight.shape[0])
    parameters = subject_encoder.by_file_key(encoder, projector)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.Adam([*parameters.values(), *readout.parameters()], lr=3e-3)
    spec = procedural.sample(8, torch.Generator().manual_seed(2))
    pictures = batches.reference_pictures(spec, torch.Generator().manual_seed(3))[0][:, 0]
    losses = []
    for _ in range(30):
        loss = subject_encoder.readout_loss(readout, projector(encode_pictures(stage.loaded, pictures)), pictures, spec)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    unread = ("post_layernorm", "visual_projection")
    still = [name for name, value in parameters.items() if torch.equal(value, before[name])]
    assert all(any(part in name for part in unread) for name in still), still
    subject_encoder.standardise(stage.loaded, projector, count=32)
    with torch.no_grad():
        tokens = projector(encode_pictures(stage.loaded, pictures))
    assert 0.8 < float(tokens.square().mean().sqrt()) < 1.25


def test_every_kind_of_batch_trains_the_parts_that_it_should(config, autoencoder_file):
    from magdiff_core.train import autoencoder, batches, diffusion

    encoder = autoencoder.load(autoencoder_file, config["autoencoder"])
    stage = diffusion.Stage(config, encoder)
    parameters = stage.parameters()
    with torch.no_grad():  # nothing at zero, so that gradients reach every tensor
        for value in parameters.values():
            if not value.any():
                value.normal_(std=0.05)
    kinds = [batches.PROMPTS, *(kind for kind, _ in batches.KINDS)]
    assert len(set(kinds)) == 9 and sum(share for _, share in batches.KINDS) == pytest.approx(1)
    uses_tokens = {batches.TOKENS, batches.EDIT, batches.REPLACE, batches.GENERATE, batches.MOTION}
    uses_latents = {batches.LATENTS, batches.EDIT, batches.REPLACE, batches.GENERATE, batches.MOTION}
    for kind in kinds:
        drawn = batches.draw_batch(encoder, 2, torch.Generator().manual_seed(1), kind)
        assert drawn.latents.shape[1] == (2 if kind == batches.PROMPTS else 8)
        assert (drawn.pictures is not None) == (kind in uses_tokens)
        assert (drawn.pyramid is not None) == (kind in uses_latents)
        for value in parameters.values():
            value.grad = None
        diffusion.loss_of_batch(stage, drawn, torch.Generator().manual_seed(2)).backward()
        reached = {name for name, value in parameters.items() if value.grad is not None and value.grad.any()}
        assert any("to_k_image" in name for name in reached) == (kind in uses_tokens)
        assert not any(name.startswith(("image_encoder.", "adapter.projector.")) for name in parameters)
        assert any("hfa.conv_z" in name for name in reached) == (kind in uses_latents)
        for part in ("model.diffusion_model.", "cond_stage_model.", "adapter.temporal.conv.", "adapter.temporal.attn."):
            missed = {n for n in parameters if n.startswith(part)} - reached
            missed = {n for n in missed if "logit_scale" not in n and "text_projection" not in n}
            assert not missed, (kind, sorted(missed)[:5])


def test_more_timesteps_are_strong_noise_and_at_the_start_all(comfy_session):
    from magdiff_core.train import diffusion

    mixed = diffusion.draw_timesteps(20000, torch.Generator().manual_seed(1))
    assert mixed.min() >= 0 and mixed.max() == 999
    assert float((mixed >= 900).float().mean()) == pytest.approx(diffusion.STRONG_SHARE, abs=0.02)
    for kind, lowest in diffusion.EVEN_FROM.items():
        strong = diffusion.draw_timesteps(1000, torch.Generator().manual_seed(1), kind)
        assert lowest <= strong.min() < lowest + 10 and strong.max() == 999
    assert diffusion.EVEN_FROM["prompts"] == 900
    even = diffusion.draw_timesteps(20000, torch.Generator().manual_seed(1), "replace")
    lowest = diffusion.EVEN_FROM["replace"]
    assert float((even >= 900).float().mean()) == pytest.approx(100 / (1000 - lowest), abs=0.01) and even.min() < lowest + 5


def test_a_group_of_motion_clips_differs_in_the_motion_alone(config, autoencoder_file, monkeypatch):
    from magdiff_core.data import procedural
    from magdiff_core.train import autoencoder, batches, diffusion

    spec = batches.draw_clips(8, torch.Generator().manual_seed(3), batches.MOTION)
    for first in (0, batches.GROUP):
        members = spec.select(slice(first, first + batches.GROUP))
        assert len(set(members.motion.tolist())) == batches.GROUP
        for name in ("shape", "colour", "background_colour", "centre", "radius", "spots"):
            values = getattr(members, name)
            assert torch.equal(values, values[:1].expand_as(values)), name
    assert not torch.equal(spec.centre[0], spec.centre[batches.GROUP])

    encoder = autoencoder.load(autoencoder_file, config["autoencoder"])
    drawn = batches.draw_batch(encoder, 8, torch.Generator().manual_seed(3), batches.MOTION)
    pictures = drawn.pictures[:, 0].unflatten(0, (2, batches.GROUP))
    assert torch.equal(pictures, pictures[:, :1].expand_as(pictures)) and not torch.equal(pictures[0, 0], pictures[1, 0])
    assert drawn.group == batches.GROUP

    seen = {}
    stage = diffusion.Stage(config, encoder, seed=7)

    def predict(x, timestep, context, tokens, latents):
        seen.update(x=x, timestep=timestep)
        return torch.zeros_like(x)

    monkeypatch.setattr(stage.training, "predict", predict)
    diffusion.loss_of_batch(stage, drawn, torch.Generator().manual_seed(4))
    signal, spread = (part[:, None, None, None, None] for part in stage.training.signal_and_noise(seen["timestep"]))
    noise = ((seen["x"] - signal * drawn.latents) / spread).unflatten(0, (2, batches.GROUP))
    assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-4) and not torch.allclose(noise[0], noise[1], atol=0.1)
    assert procedural.FRAMES == drawn.latents.shape[1]


def test_a_group_of_pattern_clips_differs_in_the_pattern_alone_and_keeps_the_test_pairs_out(config, autoencoder_file):
    from magdiff_core.data import procedural
    from magdiff_core.train import autoencoder, batches

    spec = batches.draw_clips(64, torch.Generator().manual_seed(3), batches.PATTERN)
    assert not procedural.held_out_background(spec.background_colour, spec.pattern).any()
    for first in range(0, 64, batches.GROUP):
        members = spec.select(slice(first, first + batches.GROUP))
        assert len(set(members.pattern.tolist())) == batches.GROUP
        for name in ("motion", "background_colour", "shape", "centre", "colour_jitter", "shading"):
            values = getattr(members, name)
            assert torch.equal(values, values[:1].expand_as(values)), name
    assert set(spec.pattern.tolist()) == set(range(len(procedural.PATTERNS)))
    vae = autoencoder.load(autoencoder_file, config["autoencoder"])
    drawn = batches.draw_batch(vae, 6, torch.Generator().manual_seed(3), batches.PATTERN)
    assert drawn.group == batches.GROUP and drawn.pictures is None and drawn.pyramid is None and (drawn.weight == 1).all()


def test_a_group_of_token_clips_differs_in_the_look_alone_and_no_prompt_names_it(comfy_session):
    from magdiff_core.data import procedural
    from magdiff_core.train import batches

    spec = batches.draw_clips(64, torch.Generator().manual_seed(3), batches.TOKENS)
    for first in range(0, 64, batches.GROUP):
        members = spec.select(slice(first, first + batches.GROUP))
        for name in ("motion", "background_colour", "pattern", "centre", "radius", "rotation", "shading"):
            values = getattr(members, name)
            assert torch.equal(values, values[:1].expand_as(values)), name
        assert torch.equal(members.colour_jitter[:, 2], members.colour_jitter[:1, 2].expand(batches.GROUP, 3))
    assert len(set(spec.colour.tolist())) == len(procedural.COLOURS)
    assert not procedural.held_out_subject(spec.shape, spec.colour).any()
    assert not (spec.background_colour == spec.colour).any() and not (spec.background_colour == spec.second_colour).any()
    assert (spec.centre == procedural.SIZE / 2).all()
    looks = {*procedural.TEXTURES, *(procedural.COLOURS[int(i)] for i in spec.colour)}
    prompts = batches.draw_prompts(spec, torch.Generator().manual_seed(4), shape_only=True)
    for prompt, ground in zip(prompts, spec.background_colour):
        named = set(prompt.split()) & looks - {procedural.COLOURS[int(ground)], "striped", "checkered", "dotted", "plain"}
        assert not named, prompt


def test_the_loss_weighs_the_subject_and_for_motion_all_that_it_sweeps(comfy_session):
    from magdiff_core.train import batches

    share = torch.zeros(1, 2, 1, 1, 3)
    share[0, 0, 0, 0, 0] = 1.0
    share[0, 1, 0, 0, 1] = 0.5
    plain = batches.loss_weight(share, batches.GENERATE).flatten().tolist()
    assert plain == [11.0, 6.0, 1.0, 3.5, 6.0, 3.5]
    assert (batches.loss_weight(share, batches.PATTERN) == 1).all()
    swept = batches.loss_weight(share, batches.MOTION).flatten().tolist()
    assert swept == [21.0, 11.0, 1.0] * 2


def test_a_fresh_model_holds_no_dead_cross_attention(config):
    """Two layers at zero in a row, or values too small beside the stream, keep prompts unused for thousands of steps."""
    from magdiff_core.host import own_checkpoint
    from magdiff_core.train import diffusion

    torch.manual_seed(0)
    weights = own_checkpoint.fresh_state_dict(config)
    for key, value in weights.items():
        in_unet = key.startswith(own_checkpoint.UNET_PREFIX) and key.endswith("weight")
        if in_unet and (".attn2.to_" in key or ".proj_out" in key):
            assert value.std() > 0.02, key
    stage = diffusion.Stage(config)
    context = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, value in stage.parameters().items():
            if name.endswith("out.2.weight"):
                value.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
        x = torch.randn(1, 4, 8, 16, 16, generator=torch.Generator().manual_seed(3))
        first, second = (stage.training.predict(x, torch.tensor([950]), context[i : i + 1]) for i in range(2))
    assert float((first - second).std() / first.std()) > 0.05


def test_reference_is_the_first_frame_or_the_subject_elsewhere(comfy_session):
    from magdiff_core.data import procedural
    from magdiff_core.train import batches

    spec = procedural.sample(200, torch.Generator().manual_seed(5))
    pictures, moved = batches.reference_pictures(spec, torch.Generator().manual_seed(6))
    pictures = pictures[:, 0]
    frames, subject_mask = procedural.render(spec, frames=1)
    inside = subject_mask[:, 0] == 1
    same = ((pictures - frames[:, 0]).abs().amax(-1) * inside).amax((1, 2)) < 1e-5
    assert torch.equal(same, ~moved)
    assert abs(float(same.float().mean()) - (1 - batches.OTHER_POSE)) < 0.1
    outside = subject_mask[same][:, 0] == 0
    assert not pictures[same][outside].any()

    grouped = batches.draw_clips(80, torch.Generator().manual_seed(5), batches.MOTION)
    pictures, moved = batches.reference_pictures(grouped, torch.Generator().manual_seed(6), group=batches.GROUP)
    pictures = pictures[:, 0]
    frames, subject_mask = procedural.render(grouped, frames=1)
    inside = subject_mask[:, 0] == 1
    same = ((pictures - frames[:, 0]).abs().amax(-1) * inside).amax((1, 2)) < 1e-5
    assert torch.equal(same, ~moved)
    assert 0.2 < float(same.float().mean()) < 0.8
    groups = pictures.unflatten(0, (-1, batches.GROUP))
    assert torch.equal(groups, groups[:, :1].expand_as(groups))


@pytest.mark.parametrize("kind", ["generate", "motion", "latents", "edit"])
def test_a_clip_whose_picture_shows_another_pose_has_no_subject_latents(config, autoencoder_file, kind):
    from magdiff_core.train import autoencoder, batches

    vae = autoencoder.load(autoencoder_file, config["autoencoder"])
    batch = batches.draw_batch(vae, 16, torch.Generator().manual_seed(4), kind)
    without = torch.stack([level.flatten(1).abs().amax(1) == 0 for level in batch.pyramid])
    assert torch.equal(without, without[:1].expand_as(without))
    # without tokens something has to say what the subject looks like; an edit shows every frame as it is
    assert bool(without.any()) == (kind in (batches.GENERATE, batches.MOTION)) and not without.all()


def test_rim_of_the_reference_does_not_show_the_clip_s_own_background(comfy_session):
    from magdiff_core.data import procedural
    from magdiff_core.train import batches

    white, black = torch.ones(1, 8, 8, 3), torch.zeros(1, 8, 8, 3)
    half = torch.full((1, 1, 8, 8), 0.5)
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 1, 8, 8, 3)
    assert torch.allclose(batches.cut_out(red, half, black), red * 0.25)
    assert torch.allclose(batches.cut_out(red, half, white), red * 0.25 + 0.25)

    spec = procedural.sample(2, torch.Generator().manual_seed(5))
    changed = spec.replace(background_colour=(spec.background_colour + torch.tensor([1, 0])) % 12)
    before, after = (batches.reference_pictures(each, torch.Generator().manual_seed(6))[0] for each in (spec, changed))
    assert torch.equal(before[0], after[0])


def test_a_hole_for_another_subject_has_room_for_it_and_the_one_before(config, autoencoder_file, monkeypatch):
    from magdiff_core.data import procedural
    from magdiff_core.train import autoencoder, batches

    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    assert torch.equal(batches.widened(dot, 0), dot)
    square = torch.zeros(9, 9)
    square[2:7, 2:7] = 1
    assert torch.equal(batches.widened(dot, 2)[0, 0], square)

    encoder = autoencoder.load(autoencoder_file, config["autoencoder"])
    monkeypatch.setattr(batches, "INVERSE_EDIT", 1.0)
    monkeypatch.setattr(batches, "HOLE_MARGINS", (4,))
    specs = []
    sample = procedural.sample
    monkeypatch.setattr(procedural, "sample", lambda *given: specs.append(sample(*given)) or specs[-1])
    drawn = batches.draw_batch(encoder, 2, torch.Generator().manual_seed(1), batches.EDIT)
    # what is drawn second are the looks of the subjects before; one of the background's colour is left out
    frames, subject_mask = procedural.render(specs[0])
    _, before_mask = procedural.render(specs[0].replace(**{name: getattr(specs[1], name) for name in batches.LOOK}))
    ground = specs[0].background_colour
    seen = (specs[1].colour != ground) & (specs[1].second_colour != ground)
    before_mask = before_mask * seen[:, None, None, None]
    hole = batches.widened(torch.maximum(subject_mask, before_mask), 4)
    pictures = drawn.pictures[:, :-1]
    assert not pictures[hole == 1].any() and torch.equal(pictures[hole == 0], frames[hole == 0])
    assert (hole - subject_mask).sum() > 100 and (before_mask > subject_mask).any()


def test_a_group_of_replacements_shares_hole_and_noise_and_differs_in_the_subject_that_its_prompts_name(
    config, autoencoder_file, monkeypatch
):
    from magdiff_core.data import procedural
    from magdiff_core.train import autoencoder, batches

    spec = batches.draw_clips(64, torch.Generator().manual_seed(3), batches.REPLACE)
    for name in ("motion", "centre", "radius", "rotation", "pattern", "background_colour"):
        first = getattr(spec, name)[:: batches.GROUP].repeat_interleave(batches.GROUP, 0)
        assert torch.equal(getattr(spec, name), first), name
    colours = [len(set(group.tolist())) for group in spec.colour.split(batches.GROUP)]
    assert sum(colours) / len(colours) > 2.5
    assert not (spec.colour == spec.background_colour).any()

    encoder = autoencoder.load(autoencoder_file, config["autoencoder"])
    monkeypatch.setattr(batches, "HOLE_MARGINS", (4,))
    drawn = batches.draw_batch(encoder, 8, torch.Generator().manual_seed(3), batches.REPLACE)
    assert drawn.group == batches.GROUP
    spec = batches.draw_clips(8, torch.Generator().manual_seed(3), batches.REPLACE)
    subject_mask, ground = procedural.render_subject(spec)[1], procedural.background(spec)[:, None]
    kept = drawn.pictures[:, :-1]
    for group in range(2):
        members = slice(group * batches.GROUP, (group + 1) * batches.GROUP)
        # the same picture for all, nothing in it tells them apart
        assert torch.equal(kept[members], kept[members][:1].expand_as(kept[members]))
        assert not kept[members][(subject_mask[members].amax(0) > 0.99).expand_as(subject_mask[members])].any()
    # nothing but background, darker at the rim of the hole
    shade = kept.sum(-1, keepdim=True) / ground.sum(-1, keepdim=True)
    assert torch.allclose(kept, shade * ground, atol=1e-5) and shade.max() < 1 + 1e-5
    assert 0.3 < float((shade > 0.99).float().mean()) < 0.98


def test_what_all_pictures_share_is_found(comfy_session, monkeypatch):
    from magdiff_core.train import image_stream

    shared, black, own = torch.eye(4)[:3]

    def tokens_of(_, pictures):
        if not pictures.any():
            return black.expand(len(pictures), 2, 4)
        side = 1 - 2 * (torch.arange(len(pictures)) % 2)
        return shared + side[:, None, None] * own.expand(len(pictures), 2, 4)

    monkeypatch.setattr(image_stream, "encode_pictures", tokens_of)
    projection = image_stream.own_directions(None, torch.nn.Identity(), count=8)
    assert torch.allclose(projection, torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0])), atol=1e-6)


def test_image_streams_start_loud_along_the_given_directions_alone(config, monkeypatch):
    from magdiff_core.train import diffusion, image_stream

    stage = diffusion.Stage(config, seed=7)
    adapter = stage.training.adapter
    own = torch.zeros(32, 32)
    own[5, 5] = 1
    monkeypatch.setattr(image_stream, "own_directions", lambda *_: own)
    streams = [adapter.apa.find(site) for site in adapter.apa.sites]
    before = {s: [layer.weight.detach().clone() for layer in (s.to_k_image, s.to_v_image)] for s in streams}
    image_stream.start_loud(stage.loaded, adapter)
    for stream, weights in before.items():
        for layer, weight, gain in zip((stream.to_k_image, stream.to_v_image), weights, (2.0, 16.0)):
            added = layer.weight.detach() - weight
            assert not added[:, torch.arange(32) != 5].any()
            assert float(added[:, 5].std()) == pytest.approx(gain * 32**-0.5, rel=0.35)


def test_training_sees_what_the_sampler_sees(config, autoencoder_file):
    """The prediction of the training call is the UNet's output inside ComfyUI's own sampling of the same latents."""
    import comfy.samplers

    from magdiff_core.host.conds import GENERATE, SubjectLatents, SubjectTokens, attach
    from magdiff_core.train import autoencoder, batches, diffusion

    encoder = autoencoder.load(autoencoder_file, config["autoencoder"])
    stage = diffusion.Stage(config, encoder, seed=7)
    with torch.no_grad():
        for value in stage.parameters().values():
            if not value.any():
                value.normal_(std=0.05)
    generator = torch.Generator().manual_seed(8)
    pyramid = batches.encode_pyramid(encoder, torch.rand(1, 2, 64, 64, 3, generator=generator), (16, 16))
    tokens = SubjectTokens({"last": torch.randn(1, 2, 65, 32, generator=generator)}, black_entry=True)
    latents = SubjectLatents(pyramid, 8, GENERATE)
    clean, context = torch.randn(8, 8, 16, 16, generator=generator), torch.randn(1, 24, 32, generator=generator)
    base, timestep = stage.training.base, torch.tensor([600])
    sigma = base.model_sampling.sigmas[timestep]
    with torch.no_grad():
        v = stage.training.predict((clean / (sigma**2 + 1).sqrt())[None], timestep, context, tokens, latents)[0]
    expected = clean / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()

    caught = []
    guider = comfy.samplers.CFGGuider(stage.training.patcher)
    positive = attach([[context, {}]], tokens=tokens, latents=latents)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)

    def one_call(model, x, sigmas, extra_args=None, callback=None, disable=None):
        caught.append(model(clean, sigma.expand(1), **extra_args))
        return x

    guider.sample(torch.zeros_like(clean), torch.zeros_like(clean), comfy.samplers.KSAMPLER(one_call), sigma.repeat(2), seed=0)
    assert torch.allclose(caught[0], expected, atol=2e-4 * float(expected.abs().max()))


def test_the_second_half_of_the_autoencoder_s_pictures_shows_parts_of_the_first(comfy_session):
    from magdiff_core.train import autoencoder

    source, subject_mask, visible = autoencoder.pictures(128, torch.Generator().manual_seed(0))
    whole, part = source.chunk(2)
    assert source.is_contiguous() and torch.allclose(part, (whole + 1) * visible - 1, atol=1e-6)
    mask = subject_mask[:64]
    assert torch.equal(subject_mask[64:], mask)
    subjects = sum(int(torch.equal(seen, own)) for seen, own in zip(visible, mask))
    grounds = [seen for seen, own in zip(visible, mask) if seen[own == 1].sum() == 0 and seen.any()]
    nothing = sum(int(not seen.any()) for seen in visible)
    assert subjects + len(grounds) + nothing == 64 and 30 < subjects < 58 and 6 < len(grounds) < 28
    assert autoencoder.pictures(1, torch.Generator().manual_seed(0))[0].shape == (2, 3, 64, 64)


def test_latents_disagree_only_where_both_pictures_show_the_same(comfy_session):
    from magdiff_core.train.autoencoder import disagreement

    latent = torch.zeros(2, 1, 2, 2)
    latent[0] = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    visible = torch.zeros(1, 1, 8, 8)
    visible[..., :4, :4] = 1  # the first latent pixel, and half of the second: its weight is an eighth
    visible[..., :4, 4:6] = 1
    expected = (2.0**2 + 4.0**2 / 8) / (1 + 1 / 8) / float(latent.var())
    assert float(disagreement(latent, visible)) == pytest.approx(expected, rel=1e-5)
    assert float(disagreement(latent, torch.zeros_like(visible))) == 0


def test_standardised_latents_decode_to_the_same_pictures(config, autoencoder_file):
    from magdiff_core.data import procedural
    from magdiff_core.train import autoencoder

    plain, standard = (autoencoder.load(autoencoder_file, config["autoencoder"]) for _ in range(2))
    autoencoder.standardise(standard, count=64)
    frames = procedural.render(procedural.sample(64, torch.Generator().manual_seed(98)), frames=1)[0][:, 0]
    with torch.no_grad():
        source = frames.permute(0, 3, 1, 2) * 2 - 1
        latents = standard.encode(source)
        assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-3)
        assert torch.allclose(latents.std((0, 2, 3)), torch.ones(8), atol=1e-3)
        assert torch.allclose(standard.decode(latents), plain.decode(plain.encode(source)), atol=1e-4)


def test_words_of_a_prompt_are_kept_apart(comfy_session):
    from magdiff_core.data.vocabulary import SPECIAL
    from magdiff_core.train.word_readout import WordReadout

    readout = WordReadout(len(SPECIAL) + 2, 4)
    with torch.no_grad():
        readout.directions.copy_(torch.eye(6, 4).roll(4, 0) * 7)
    first, second = len(SPECIAL), len(SPECIAL) + 1
    ids = torch.tensor([[1, first, second, 2, 0]])
    tokens = torch.zeros(1, 5, 4)
    tokens[0, 1, 0] = tokens[0, 2, 1] = 3.0
    scores = torch.tensor([3.0, 0, 0, 0, 0, 0])
    assert float(readout.loss(tokens, ids).detach()) == pytest.approx(float(-scores.log_softmax(0)[0]), rel=1e-5)
    alike = tokens.clone()
    alike[0, 2] = alike[0, 1]
    assert readout.loss(alike, ids) > 1.0 + readout.loss(tokens, ids)
    noise = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(readout.loss(torch.where((ids < first)[..., None], noise, tokens), ids), readout.loss(tokens, ids))
    assert readout.loss(tokens, torch.tensor([[1, 2, 0, 0, 0]])) == 0
