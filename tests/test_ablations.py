"""The ablations: what training leaves out, what is measured without it, and the spreads in the tables."""

from __future__ import annotations

import copy

import pytest
import torch

from magdiff_core.train.alignments import ALL, Alignments


@pytest.fixture(scope="module")
def batches(comfy_session):
    from magdiff_core.train import batches

    return batches


class Averaging(torch.nn.Module):
    """Stands for the autoencoder: latents are the colours of 4 x 4 pixels and their brightness, in -1..1."""

    def encode(self, pictures):
        pooled = torch.nn.functional.avg_pool2d(pictures.float(), 4)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], 1)


@pytest.fixture(scope="module")
def black(batches):
    return list(batches.encode_pyramid(Averaging(), torch.zeros(1, 1, 64, 64, 3), (16, 16)))


def draw(batches, black, kind, alignments, seed=1):
    return batches.draw_batch(Averaging(), 4, torch.Generator().manual_seed(seed), black, kind, alignments)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="apa and hfa are both left out"):
        Alignments(apa=False, hfa=False)
    with pytest.raises(ValueError, match=r"alphas are 0\.3 \(text\) and 0\.7 \(image\), but apa is left out"):
        Alignments(apa=False, alphas=(0.3, 0.7))


def test_kinds_that_make_no_sense_give_their_share_to_the_others(batches):
    assert batches.kinds_with(ALL) == batches.KINDS
    assert batches.kinds_with(Alignments(sda=False)) == batches.KINDS
    for alignments, left_out in ((Alignments(apa=False), batches.TOKENS), (Alignments(hfa=False), batches.LATENTS)):
        kinds, usual = dict(batches.kinds_with(alignments)), dict(batches.KINDS)
        assert usual.keys() - kinds.keys() == {left_out}
        assert sum(kinds.values()) == pytest.approx(1)
        assert kinds[batches.EDIT] / kinds[batches.PLAIN] == pytest.approx(usual[batches.EDIT] / usual[batches.PLAIN])
    generator = torch.Generator().manual_seed(4)
    drawn = {batches.draw_kind(generator, Alignments(apa=False)) for _ in range(300)}
    assert batches.TOKENS not in drawn and batches.LATENTS in drawn


@pytest.mark.parametrize("kind", ["generate", "motion", "edit", "tokens", "latents", "plain"])
def test_without_tokens_or_latents_batches_hold_none_and_are_else_the_same(batches, black, kind):
    whole = draw(batches, black, kind, ALL)
    without_tokens, without_latents = (draw(batches, black, kind, Alignments(**{name: False})) for name in ("apa", "hfa"))
    assert without_tokens.pictures is None and without_latents.pyramid is None
    assert (without_tokens.pyramid is None) == (whole.pyramid is None)
    assert (without_latents.pictures is None) == (whole.pictures is None)
    for other in (without_tokens, without_latents):
        assert other.prompts == whole.prompts and torch.equal(other.latents, whole.latents)


@pytest.mark.parametrize("kind", ["generate", "motion", "tokens"])
def test_without_sda_the_reference_shows_the_background_of_its_clip(batches, black, kind):
    clip = draw(batches, black, kind, Alignments(sda=False))
    corner = clip.pictures[:, 0, :4, :4].mean((1, 2)) * 2 - 1
    assert torch.allclose(corner, clip.latents[:, 0, :3, 0, 0], atol=0.02)  # no subject reaches the corner
    assert not clip.pictures[:, 1:].any()
    with_sda = draw(batches, black, kind, ALL)
    assert not with_sda.pictures[:, 0, :4, :4].any()
    assert with_sda.prompts == clip.prompts and torch.equal(with_sda.latents, clip.latents)


def test_without_sda_an_edit_is_given_the_whole_clip(batches, black):
    clip = draw(batches, black, "edit", Alignments(sda=False))
    frames = clip.pictures[:, :-1].flatten(0, 1).movedim(-1, 1) * 2 - 1
    assert torch.allclose(Averaging().encode(frames), clip.latents.flatten(0, 1), atol=0.02)


@pytest.fixture(scope="module")
def config(comfy_session):
    from magdiff_core.host import own_checkpoint

    config = copy.deepcopy(own_checkpoint.MINI_CONFIG)
    config["unet"].update(model_channels=32, channel_mult=[1, 1], num_res_blocks=[1, 1], transformer_depth=[0, 1],
                          transformer_depth_output=[0, 0, 1, 1], context_dim=32, num_head_channels=16)  # fmt: skip
    for name in ("text_encoder", "image_encoder"):
        config[name].update(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=2)
    config["autoencoder"]["ddconfig"]["ch_mult"] = config["autoencoder"]["decoder_ddconfig"]["ch_mult"] = [1, 1, 1]
    config["autoencoder"]["decoder_ddconfig"]["ch"] = 32
    return config


def trained_alphas(config, folder, alignments):
    """Files of two steps on a fresh model, read by the loader of the node."""
    from magdiff_core.host.adapter_file import load_adapter_file
    from magdiff_core.train import diffusion, export

    export.run(folder / "start", config=config)
    diffusion.run(
        folder,
        start_from=folder / "start",
        steps=2,
        batch=1,
        rate=1e-2,
        warm_up=1,
        decay_from=1,
        alignments=alignments,
        config=config,
    )
    streams = load_adapter_file(str(folder / export.ADAPTER_NAME)).patcher.model.apa
    found = [streams.find(site) for site in streams.sites]
    assert found
    return [(float(stream.alpha_text), float(stream.alpha_image)) for stream in found]


def test_held_alphas_are_written_as_given_and_learned_ones_move(config, tmp_path, monkeypatch):
    from magdiff_core.train import batches

    monkeypatch.setattr(batches, "KINDS", ((batches.GENERATE, 1.0),))
    for text, image in trained_alphas(config, tmp_path / "held", Alignments(alphas=(0.25, 0.75))):
        assert (text, image) == (0.25, 0.75)
    learned = trained_alphas(config, tmp_path / "learned", ALL)
    assert all(text != 1 and image != 1 for text, image in learned)
