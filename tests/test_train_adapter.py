"""Stages of the adapter trainer: what learns and what does not, what is learned, and the file that comes out."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from magdiff_core.train.checkpoint import load_state
from magdiff_core.train.engine import Engine
from magdiff_core.train.loop import Schedule, train

STAGES = ("text-to-video", "magdiff")
IMAGE_WIDTH = 24
FRAMES = 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(stage, clips=2, side=8, seed=0):
    """An encoded batch and the common part, as the cache would give them."""
    from magdiff_core.train.adapter_batches import ClipBatch

    shape = (clips, FRAMES, 4, side, side)
    sides = (side, side * 5 // 4, side * 3 // 2)
    subjects, common = {}, {"text": random(9, 32, seed=9)}
    if stage == "magdiff":
        subjects = {"hidden": random(clips, 5, IMAGE_WIDTH, seed=seed + 1)}
        common |= {"hidden": random(1, 5, IMAGE_WIDTH, seed=8), "flags": torch.tensor([True, False])}
        for level, n in enumerate(sides):
            subjects[f"level_{level}"] = random(clips, 4, n, n, seed=seed + 2 + level)
            common[f"level_{level}"] = random(1, 4, n, n, seed=20 + level)
    timestep = torch.randint(1000, (clips,), generator=torch.Generator().manual_seed(seed + 6))
    text = random(clips, 9, 32, seed=seed + 7)
    return ClipBatch(random(*shape, seed=seed), random(*shape, seed=seed + 5), timestep, text, subjects), common


def new_stage(stage, prediction="eps", checkpoint_layers=False, adapter=None, seed=0, model=None):
    from tiny import tiny_model

    from magdiff_core.host.training_base import training_base
    from magdiff_core.train.adapter_stage import AdapterStage

    model = model or tiny_model(prediction)
    if adapter is not None:
        from magdiff_core.host.adapter_file import load_adapter_file
        from magdiff_core.host.attach import apply_adapter
        from magdiff_core.host.call import PartStrengths

        model = apply_adapter(model, load_adapter_file(str(adapter)), PartStrengths())
    engine = Engine()
    made = AdapterStage(
        training_base(model), stage, engine, FRAMES, IMAGE_WIDTH, "a tiny base", checkpoint_layers=checkpoint_layers, seed=seed
    )
    return made, engine


def take_steps(made, engine, folder, steps, stage, **options):
    number = iter(range(10**6))

    def loss_of(generator):
        batch, common = batch_of(stage, seed=100 * next(number))
        return engine.run(batch, common)

    schedule = Schedule(1e-3, steps, warm_up=1, decay_from=1.0, average_decay=0.0, save_steps=10**6)
    return train(made.parameters(), loss_of, schedule, folder, engine=engine, **options)


def everything(made):
    modules = {"": made.training.adapter, "base.": made.training.base.diffusion_model}
    return {prefix + key: value for prefix, module in modules.items() for key, value in module.named_parameters()}


@pytest.mark.parametrize("prediction", ("eps", "v"))
@pytest.mark.parametrize("stage", STAGES)
def test_ten_steps_move_every_trained_tensor_and_no_other(comfy_session, tmp_path, stage, prediction):
    made, engine = new_stage(stage, prediction)
    before = {name: value.detach().clone() for name, value in everything(made).items()}
    take_steps(made, engine, tmp_path, 10, stage)
    trained = set(made.parameters())
    for name, value in everything(made).items():
        assert torch.equal(value, before[name]) == (name not in trained), name
    temporal = {name for name in before if name.startswith("temporal.")}
    if stage == "text-to-video":
        assert trained == temporal
        return
    of_base = {name for name in before if name.startswith("base.")}
    attention = {name for name in of_base if any(f".{part}." in name for part in ("attn1", "attn2", "norm1", "norm2"))}
    assert trained == before.keys() - of_base | attention
    parts = ("temporal.conv.", "temporal.attn.", "apa.", "hfa.level.", "hfa.conv_z.", "projector.", "base.")
    assert all(any(name.startswith(part) for name in trained) for part in parts)
    assert any(name.endswith("alpha_text") for name in trained) and any(name.endswith("alpha_image") for name in trained)


@pytest.mark.parametrize("stage", STAGES)
def test_a_clip_that_is_seen_again_and_again_is_learned(comfy_session, stage):
    made, engine = new_stage(stage)
    batch, common = batch_of(stage)
    optimizer = torch.optim.Adam(made.parameters().values(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = engine.run(batch, common)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.5 * losses[0]


@pytest.mark.parametrize("prediction", ("eps", "v"))
def test_written_adapter_samples_like_the_trained_model(comfy_session, tmp_path, prediction):
    import tiny_run
    from tiny import tiny_model

    from magdiff_core.host.adapter_file import load_adapter_file

    made, engine = new_stage("magdiff", prediction)
    average = take_steps(made, engine, tmp_path, 4, "magdiff")
    made.write(tmp_path / "adapter.safetensors", average.values, "a test")

    def wired():
        payload = tiny_run.subject(FRAMES)
        payload["tokens"] = tiny_run.tokens(width=IMAGE_WIDTH)
        return tiny_run.wired(**payload)

    loaded = load_adapter_file(str(tmp_path / "adapter.safetensors"))
    fresh = tiny_run.apply_adapter(tiny_model(prediction), loaded, tiny_run.PartStrengths())
    with torch.no_grad():
        from_file = tiny_run.run(fresh, *wired(), frames=FRAMES, steps=4)
        trained = tiny_run.run(made.training.patcher, *wired(), frames=FRAMES, steps=4)
        plain = tiny_run.run(tiny_model(prediction), *tiny_run.prompts(), frames=FRAMES, steps=4)
    assert (from_file - trained).abs().max() < 1e-5 * max(1.0, float(trained.abs().max()))
    assert (from_file - plain).abs().max() > 1e-2

    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        keys = set(file.keys())
    assert keys == set(made.parameters())
    assert loaded.config.prediction == prediction and loaded.config.frames == FRAMES and loaded.config.trained_from == "a test"
    differences = {key.removeprefix("base.") for key in keys if key.startswith("base.")}
    assert differences and set(loaded.config.base_hashes) == differences
    with pytest.raises(ValueError, match="made to another base"):
        tiny_run.apply_adapter(tiny_model(prediction, seed=5), loaded, tiny_run.PartStrengths())


def test_own_ddim_is_that_of_the_sampler_node(comfy_session):
    import tiny_run

    from magdiff_core.host.conds import attach
    from magdiff_core.host.training_encode import conditioning
    from magdiff_core.train import adapter_samples

    made, engine = new_stage("magdiff")
    engine.parameters = made.parameters()
    batch, common = batch_of("magdiff", clips=1)
    clip = {"latents": batch.latents[0], "text": batch.text[0], **{name: value[0] for name, value in batch.subjects.items()}}
    own = adapter_samples.sample_latents(made, engine, [clip], common, steps=4, seed=3)[0]
    tokens, latents = conditioning(batch.subjects, common, "last", FRAMES)
    positive, negative = (attach([[text, {}]], tokens=tokens, latents=latents) for text in (batch.text, common["text"][None]))
    noise = random(FRAMES, 4, 8, 8, seed=3)
    with torch.no_grad():
        node = tiny_run.run(made.training.patcher, positive, negative, frames=FRAMES, steps=4, cfg=7.5, noise=noise)
    assert (own - node).abs().max() < 1e-4 * node.abs().max()


@pytest.mark.parametrize("prediction", ("eps", "v"))
def test_target_is_eps_or_v(comfy_session, prediction):
    made, _ = new_stage("text-to-video", prediction)
    training = made.training
    clean, noise = random(2, 3, 4, 8, 8, seed=1), random(2, 3, 4, 8, 8, seed=2)
    timestep = torch.tensor([40, 700])
    signal, spread = (share[:, None, None, None, None] for share in training.signal_and_noise(timestep))
    expected = noise if prediction == "eps" else signal * noise - spread * clean
    sigma = training.base.model_sampling.sigmas[timestep]
    assert torch.allclose(training.target(clean, noise, sigma), expected, atol=1e-4)
    # and the UNet's own output is what the base turns into clean latents
    context = random(2, 9, 32, seed=3)
    x = clean + sigma[:, None, None, None, None] * noise
    with torch.no_grad():
        seen, output = training.denoise(x, sigma, context)
        again = training.predict(signal * clean + spread * noise, timestep, context)
    assert torch.allclose(output, again, atol=1e-4)
    wide = sigma[:, None, None, None, None]
    by_hand = x - wide * output if prediction == "eps" else signal**2 * x - spread * output
    assert torch.allclose(seen, by_hand, atol=1e-3)


@pytest.mark.parametrize("precision", ("no", "bf16"))
def test_gradient_checkpointing_changes_no_gradient(comfy_session, precision):
    gradients = []
    for checkpoint_layers in (False, True):
        made, engine = new_stage("magdiff", checkpoint_layers=checkpoint_layers)
        engine.precision = precision
        batch, common = batch_of("magdiff")
        engine.run(batch, common).backward()
        gradients.append({name: value.grad for name, value in made.parameters().items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-6 if precision == "no" else 1e-3), name


def test_gradient_checkpointing_runs_every_layer_twice(comfy_session):
    import tiny_run

    from magdiff_core.temporal.temp_conv import TempConv

    made, engine = new_stage("magdiff", checkpoint_layers=True)
    layers = [layer for layer in made.training.adapter.modules() if isinstance(layer, TempConv)]
    layers.append(made.training.adapter.projector)
    with tiny_run.calls_of(*layers) as counts:
        batch, common = batch_of("magdiff")
        engine.run(batch, common).backward()
    assert counts == [2] * (len(layers) - 1) + [1], "the projector is shared by all layers, and kept"


def test_the_second_stage_goes_on_from_the_first(comfy_session, tmp_path):
    first, engine = new_stage("text-to-video")
    average = take_steps(first, engine, tmp_path / "first", 3, "text-to-video")
    first.write(tmp_path / "first.safetensors", average.values, "stage one")
    written = load_file(tmp_path / "first.safetensors")
    assert written.keys() == set(first.parameters()) and not first.originals

    second, engine = new_stage("magdiff", adapter=tmp_path / "first.safetensors")
    assert second.config.trained_from == "stage one"
    for name, value in written.items():
        assert torch.equal(second.parameters()[name], value), name
    average = take_steps(second, engine, tmp_path / "second", 3, "magdiff")
    second.write(tmp_path / "second.safetensors", average.values, "stage two")

    # and a third run goes on from the differences to the base
    third, engine = new_stage("magdiff", adapter=tmp_path / "second.safetensors")
    for name, value in third.parameters().items():
        assert torch.allclose(value, second.parameters()[name], atol=1e-6), name
    again = third.adapter_weights({name: value.detach() for name, value in third.parameters().items()})
    for name, value in load_file(tmp_path / "second.safetensors").items():
        assert torch.allclose(again[name], value, atol=1e-6), name
    # the first stage leaves differences as they are
    kept, _ = new_stage("text-to-video", adapter=tmp_path / "second.safetensors")
    weights = kept.adapter_weights(kept.parameters())
    for name, value in load_file(tmp_path / "second.safetensors").items():
        assert torch.equal(weights[name], value), name


def test_an_adapter_with_a_noise_schedule_of_its_own_is_trained_with_it(comfy_session, tmp_path):
    import tiny_run
    from safetensors.torch import save_file
    from tiny import adapter_weights, tiny_model

    from magdiff_core.config import ScheduleConfig
    from magdiff_core.host.schedule import signals

    schedule = ScheduleConfig(beta="linear")
    weights = adapter_weights(tiny_model())
    save_file(weights, tmp_path / "a.safetensors", tiny_run.config(schedule=schedule).to_metadata())
    made, _ = new_stage("magdiff", adapter=tmp_path / "a.safetensors")
    assert made.config.schedule == schedule
    signal, _ = signals(schedule)
    expected = ((1 - signal**2).sqrt() / signal).float()
    assert torch.allclose(made.training.base.model_sampling.sigmas, expected, rtol=1e-4)
    assert all(torch.equal(made.training.adapter.state_dict()[key], value) for key, value in weights.items())


def test_another_image_encoder_than_the_adapter_s_is_refused(comfy_session, tmp_path):
    from magdiff_core.host.adapter_file import load_adapter_file
    from magdiff_core.host.attach import apply_adapter
    from magdiff_core.host.call import PartStrengths
    from magdiff_core.host.training_base import training_base
    from magdiff_core.train.adapter_stage import AdapterStage

    made, engine = new_stage("magdiff")
    made.write(tmp_path / "a.safetensors", made.parameters(), "")
    from tiny import tiny_model

    model = apply_adapter(tiny_model(), load_adapter_file(str(tmp_path / "a.safetensors")), PartStrengths())
    with pytest.raises(ValueError, match="48 wide, the adapter to start from was trained with 24"):
        AdapterStage(training_base(model), "magdiff", engine, image_width=48)


def test_the_base_of_the_graph_is_left_alone_and_inference_tensors_can_be_trained(comfy_session, tmp_path):
    from tiny import tiny_model

    with torch.inference_mode():
        model = tiny_model()
        for value in model.model.diffusion_model.parameters():
            value.data = value.data.clone()
    before = copy.deepcopy({key: value.clone() for key, value in model.model.state_dict().items()})
    assert next(iter(model.model.diffusion_model.parameters())).data.is_inference()
    with torch.inference_mode(), torch.inference_mode(False), torch.enable_grad():
        made, engine = new_stage("magdiff", model=model)
        take_steps(made, engine, tmp_path, 2, "magdiff")
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_models_that_cannot_be_trained_on_are_refused(comfy_session):
    from tiny import tiny_model

    from magdiff_core.host.training_base import training_base

    model = tiny_model().clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    model.add_patches({key: (torch.zeros_like(model.model.state_dict()[key]),)}, 1.0)
    with pytest.raises(ValueError, match=r"changes of its weights \(1 of them"):
        training_base(model)
    with pytest.raises(ValueError, match="inpainting"):
        training_base(tiny_model(in_channels=9))


def test_a_stopped_step_is_taken_again_with_the_same_numbers(comfy_session, tmp_path):
    """Stopped between the parts of a step, and after a step: the end is the same in every bit."""

    class Stop(Exception):
        pass

    def run(folder, stop_at=None, stop_after=None, resume=False):
        made, engine = new_stage("magdiff", seed=3)
        calls = [0]

        def loss_of(generator):
            calls[0] += 1
            seed = int(torch.randint(10**6, (1,), generator=generator))
            if calls[0] == stop_at:
                raise Stop
            batch, common = batch_of("magdiff", clips=1, seed=seed)
            return engine.run(batch, common)

        def after_step(average, step, loss):
            if step == stop_after:
                raise Stop

        schedule = Schedule(1e-3, 3, decay_from=1.0, save_steps=10)
        try:
            train(made.parameters(), loss_of, schedule, folder, 5, resume, engine=engine, accumulate=2, after_step=after_step,
                  interruptions=(Stop,))  # fmt: skip
        except Stop:
            return

    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_at=4)
    assert load_state(tmp_path / "parts" / "state.pt")["step"] == 1
    run(tmp_path / "parts", stop_after=2, resume=True)
    assert load_state(tmp_path / "parts" / "state.pt")["step"] == 2
    run(tmp_path / "parts", resume=True)
    whole, parts = (load_state(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    for name in whole["parameters"]:
        assert torch.equal(whole["parameters"][name], parts["parameters"][name]), name
        assert torch.equal(whole["average"]["values"][name], parts["average"]["values"][name]), name
    assert torch.equal(whole["generator"], parts["generator"]) and parts["step"] == 3
