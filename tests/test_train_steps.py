"""Steps of the trainer: every stage of the small model moves what learns and nothing else; parts of a step and scaled losses."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from training_parts import small_config

from magdiff_core.train.checkpoint import load_state
from magdiff_core.train.engine import Engine
from magdiff_core.train.loop import Schedule, train

UNREAD = ("logit_scale", "text_projection", "post_layernorm", "visual_projection")
"""Tensors of ComfyUI's encoders whose output nothing here reads."""


@pytest.fixture(scope="module")
def config(comfy_session):
    return small_config()


def trained(folder) -> dict[str, torch.Tensor]:
    return load_state(folder / "state.pt")["parameters"]


def assert_all_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    still = [name for name, value in before.items() if torch.equal(value, after[name]) and not any(word in name for word in UNREAD)]
    assert not still, still[:5]


def test_ten_steps_of_the_autoencoder_move_every_tensor(config, tmp_path, monkeypatch):
    from magdiff_core.host import own_checkpoint
    from magdiff_core.train import autoencoder

    monkeypatch.setattr(autoencoder, "measure", lambda *_, **__: {})
    monkeypatch.setattr(autoencoder, "standardise", lambda *_, **__: None)
    autoencoder.run(tmp_path, steps=10, batch=2, seed=4, config=config["autoencoder"])
    torch.manual_seed(4)
    fresh = own_checkpoint.build_autoencoder(config["autoencoder"])
    assert_all_moved(dict(fresh.named_parameters()), trained(tmp_path))


def test_ten_steps_of_the_encoder_move_every_tensor_of_it_and_of_the_projector(config, tmp_path, monkeypatch):
    from magdiff_core.host import own_checkpoint
    from magdiff_core.train import diffusion, subject_encoder

    monkeypatch.setattr(subject_encoder, "standardise", lambda *_, **__: None)
    subject_encoder.run(tmp_path, steps=10, batch=2, seed=4, config=config)
    stage = diffusion.Stage(config, seed=4)
    fresh = subject_encoder.by_file_key(stage.modules[own_checkpoint.IMAGE_PREFIX], stage.training.adapter.projector)
    after = {name: value for name, value in trained(tmp_path).items() if not name.startswith("readout.")}
    assert_all_moved(fresh, after)


def test_ten_steps_of_the_last_stage_move_every_trained_tensor_and_no_frozen_one(config, tmp_path):
    """Batches of each kind; autoencoder, image encoder and projector stay, bit by bit."""
    from magdiff_core.host import own_checkpoint
    from magdiff_core.train import batches, diffusion

    torch.manual_seed(4)
    vae = own_checkpoint.build_autoencoder(config["autoencoder"])
    stage = diffusion.Stage(config, vae, seed=4)
    kinds = [kind for kind, _ in batches.KINDS]
    parts = {**stage.modules, "adapter.": stage.training.adapter}
    before = {prefix + key: value.clone() for prefix, part in parts.items() for key, value in part.state_dict().items()}
    learns = set(stage.parameters())
    number = iter(range(10**6))

    def loss_of(generator):
        kind = kinds[next(number) % len(kinds)]
        return diffusion.loss_of_batch(stage, batches.draw_batch(vae, 1, generator, kind), generator)

    train(stage.parameters(), loss_of, Schedule(1e-3, 10, warm_up=1), tmp_path)
    after = {prefix + key: value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    assert_all_moved(*({name: values[name] for name in values if name in learns} for values in (before, after)))
    frozen = before.keys() - learns
    for prefix in (own_checkpoint.VAE_PREFIX, own_checkpoint.IMAGE_PREFIX, "adapter.projector."):
        assert any(name.startswith(prefix) for name in frozen) and not any(name.startswith(prefix) for name in learns)
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_a_decoder_goes_on_learning_and_the_latents_stay(config, tmp_path, monkeypatch):
    """Of a pair of files the decoder alone changes, and only one that fits the pair's encoder is put into it."""
    from magdiff_core.host import own_checkpoint
    from magdiff_core.train import autoencoder, diffusion, export

    def not_now(*_):
        raise AssertionError("latents must stay as they are")

    monkeypatch.setattr(autoencoder, "measure", lambda *_, **__: {})
    pair, out, merged = (tmp_path / name for name in ("pair", "out", "merged"))
    stage = diffusion.Stage(config, seed=4)
    export.write_files(pair, *stage.state_dicts({}), config, stage.adapter_config)
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "standardise", not_now)
        autoencoder.run(out, steps=3, batch=2, rate=0.3, config=config["autoencoder"], start_from=pair)
    export.put_decoder(merged, pair, out / "autoencoder.pt", config)

    before, after = export.read_files(pair), export.read_files(merged)
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items()) and before[1].keys() == after[1].keys()
    assert before[0].keys() == after[0].keys()
    changed = {name for name, value in before[0].items() if not torch.equal(value, after[0][name])}
    decoder = tuple(own_checkpoint.VAE_PREFIX + part for part in ("decoder.", "post_quant_conv."))
    assert changed == {name for name in before[0] if name.startswith(decoder)}
    for name in (export.CHECKPOINT_NAME, export.ADAPTER_NAME):
        with safe_open(merged / name, "pt") as written, safe_open(pair / name, "pt") as given:
            assert written.metadata() == given.metadata()

    monkeypatch.setattr(autoencoder, "standardise", lambda *_: None)
    autoencoder.run(tmp_path / "other", steps=1, batch=2, seed=9, config=config["autoencoder"])
    with pytest.raises(ValueError, match=r"another encoder .*autoencoder --start-from"):
        export.put_decoder(merged, pair, tmp_path / "other" / "autoencoder.pt", config)


class Recording(Engine):
    """Remembers the gradients that each step was taken with."""

    def __init__(self, precision: str = "no") -> None:
        super().__init__("cpu", precision)
        self.seen: list[torch.Tensor] = []

    def step(self, optimizer):
        self.seen.append(self.parameters["w"].grad.clone())
        super().step(optimizer)


def line(tmp_path, parts: int, losses: list[float]) -> Recording:
    """One step on w, with the mean square error of four rows in so many parts."""
    weight, engine = torch.nn.Parameter(torch.tensor([0.1, -0.2])), Recording()
    rows, wanted = torch.tensor([[0.1, 0.2], [0.3, -0.1], [0.2, 0.2], [-0.3, 0.1]]), torch.tensor([0.1, 0.2, -0.1, 0.0])
    number = iter(range(10**6))

    def loss_of(generator):
        chosen = slice(next(number) * (4 // parts), None)
        return (rows[chosen][: 4 // parts] @ weight - wanted[chosen][: 4 // parts]).square().mean()

    after_step = lambda average, step, loss: losses.append(loss)  # noqa: E731
    train({"w": weight}, loss_of, Schedule(1e-3, 1), tmp_path, engine=engine, accumulate=parts, after_step=after_step)
    return engine


@pytest.mark.parametrize("tokens", [12, 600])
def test_attention_of_a_step_is_torch_s_own_with_its_gradients(comfy_session, tokens):
    from magdiff_core.host.training import differentiable_attention

    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, count, 64, generator=drawn, requires_grad=True) for count in (20, tokens, tokens)]
    heads = [states.unflatten(-1, (2, 32)).transpose(1, 2) for states in inputs]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    found = differentiable_attention(None, *inputs, 2, transformer_options={})
    assert torch.allclose(found, expected, atol=1e-5)
    upstream = torch.randn(expected.shape, generator=drawn)
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (found, expected))
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_step_in_parts_has_the_gradient_and_the_loss_of_the_whole_batch(tmp_path):
    losses: list[float] = []
    whole, halves, quarters = (line(tmp_path / str(parts), parts, losses).seen for parts in (1, 2, 4))
    assert len(whole) == len(halves) == len(quarters) == 1 and whole[0].norm() < 1  # what is larger would be clipped
    assert torch.allclose(whole[0], halves[0], atol=1e-7) and torch.allclose(whole[0], quarters[0], atol=1e-7)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_a_scaled_loss_that_overflows_is_skipped_and_learning_goes_on(tmp_path):
    """In float16: the scale is halved and the weights stay, the next step learns; the scale is part of the state."""
    weight, engine = torch.nn.Parameter(torch.tensor([0.5])), Recording("fp16")
    kept = []

    def loss_of(generator):
        kept.append(weight.detach().clone())
        # the loss is finite, its gradient times the scale is not
        return (weight * (1e35 if len(kept) == 2 else 1.0)).sum()

    train({"w": weight}, loss_of, Schedule(1e-2, 4, warm_up=1), tmp_path, engine=engine)
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2]) and not torch.equal(kept[2], kept[3])
    assert load_state(tmp_path / "state.pt")["engine"]["scale"] == 2.0**15

    resumed = Recording("fp16")
    train({"w": weight}, lambda generator: weight.sum(), Schedule(1e-2, 5, warm_up=1), tmp_path, resume=True, engine=resumed)
    assert resumed.scaler.get_scale() == 2.0**15
    with pytest.raises(FloatingPointError, match="loss is nan at step 5.*state.pt holds the weights of step 5"):
        nothing = lambda generator: weight.sum() * float("nan")  # noqa: E731
        train({"w": weight}, nothing, Schedule(1e-2, 6), tmp_path, resume=True, engine=Recording("fp16"))


def test_the_paper_s_rate_is_the_default_for_any_base_and_the_small_model_has_its_own(comfy_session, tmp_path):
    import argparse
    import inspect

    from magdiff_core.train import adapter_command, autoencoder, diffusion, subject_encoder
    from magdiff_core.train.adapter_run import AdapterOptions

    parser = argparse.ArgumentParser()
    adapter_command.add_arguments(parser)
    assert parser.get_default("rate") == AdapterOptions(tmp_path, tmp_path, 1).rate == 5e-5
    for stage in (autoencoder, subject_encoder, diffusion):
        assert inspect.signature(stage.run).parameters["rate"].default > 5e-5
