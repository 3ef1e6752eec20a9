"""The ablations: what training leaves out, what is measured without it, and the spreads in the tables."""

from __future__ import annotations

import pytest
import torch
from training_parts import small_config

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


def draw(batches, kind, alignments, seed=1):
    return batches.draw_batch(Averaging(), 4, torch.Generator().manual_seed(seed), kind, alignments)


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
def test_without_tokens_or_latents_batches_hold_none_and_are_else_the_same(batches, kind):
    whole = draw(batches, kind, ALL)
    without_tokens, without_latents = (draw(batches, kind, Alignments(**{name: False})) for name in ("apa", "hfa"))
    assert without_tokens.pictures is None and without_latents.pyramid is None
    assert (without_tokens.pyramid is None) == (whole.pyramid is None)
    assert (without_latents.pictures is None) == (whole.pictures is None)
    for other in (without_tokens, without_latents):
        assert other.prompts == whole.prompts and torch.equal(other.latents, whole.latents)


@pytest.mark.parametrize("kind", ["generate", "motion", "tokens"])
def test_without_sda_the_reference_shows_the_background_of_its_clip(batches, kind):
    clip = draw(batches, kind, Alignments(sda=False))
    corner = clip.pictures[:, 0, :4, :4].mean((1, 2)) * 2 - 1
    assert torch.allclose(corner, clip.latents[:, 0, :3, 0, 0], atol=0.02)  # no subject reaches the corner
    assert not clip.pictures[:, 1:].any()
    with_sda = draw(batches, kind, ALL)
    assert not with_sda.pictures[:, 0, :4, :4].any()
    assert with_sda.prompts == clip.prompts and torch.equal(with_sda.latents, clip.latents)


def test_without_sda_an_edit_is_given_the_whole_clip(batches):
    clip = draw(batches, "edit", Alignments(sda=False))
    frames = clip.pictures[:, :-1].flatten(0, 1).movedim(-1, 1) * 2 - 1
    assert torch.allclose(Averaging().encode(frames), clip.latents.flatten(0, 1), atol=0.02)


@pytest.fixture(scope="module")
def config(comfy_session):
    return small_config()


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


def test_pull_is_0_at_the_wanted_colour_and_1_at_the_reference_s():
    from magdiff_core.metrics.leak import background_pull, mean_background

    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    assert background_pull(red, red, blue) == 0 and background_pull(blue, red, blue) == 1
    assert background_pull(0.75 * red + 0.25 * blue, red, blue) == pytest.approx(0.25)
    assert background_pull(red + torch.tensor([0, 0.5, 0]), red, blue) == pytest.approx(0)  # green is on neither side
    with pytest.raises(ValueError, match="are both"):
        background_pull(blue, red, red)
    frames, mask = red.expand(2, 64, 64, 3).clone(), torch.zeros(2, 64, 64)
    mask[:, 20:40, 20:40] = 1
    frames[:, 18:42, 18:42] = blue  # the rim too, which the margin leaves out
    assert torch.allclose(mean_background(frames, mask), red)
    assert torch.allclose(mean_background(frames, torch.ones(2, 64, 64)), frames.mean((0, 1, 2)))


def test_spreads_over_clips_and_seeds():
    from benchmarks.ablations.figures import Figure, difference, figure

    assert figure([[1.0, 0.0, 1.0, 0.0]]) == Figure(0.5, pytest.approx((1 / 3) ** 0.5 / 2), None)
    two = figure([[1.0, 0.0], [1.0, 1.0]])  # clips 1 and 0.5, seeds 0.5 and 1
    assert two == Figure(0.75, pytest.approx(0.25), pytest.approx(0.25))
    # what both share drops out: each clip is better by the same
    apart = difference([[0.5, 0.9], [0.3, 0.4]], [[0.4, 0.8], [0.2, 0.3]])
    assert apart == Figure(pytest.approx(0.1), pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_measures_of_true_clips_and_of_a_copied_reference(comfy_session):
    from benchmarks.ablations.evaluate import measures_of
    from benchmarks.mini.cases import make_cases

    for case in make_cases(3, 11):
        good, copied = measures_of(case.target, case, edit=False), measures_of(case.source, case, edit=True)
        assert good["background"] == 1 and good["leak"] == 0 and good["pull"] == pytest.approx(0, abs=0.05)
        assert copied["background"] == 0 and copied["leak"] == 1 and copied["pull"] == pytest.approx(1, abs=0.05)
        assert copied["kept_psnr"] == 100 and "kept_psnr" not in good
        assert ("pattern_leak" in good) == (case.pattern != case.source_pattern)
        assert good.get("pattern_leak", 0) == 0 and copied.get("pattern_leak", 1) == 1
        assert good["subject_rmse"] < 0.1 > copied["subject_rmse"]


def test_a_variant_is_given_what_it_was_trained_with_and_no_more(comfy_session):
    from benchmarks.ablations.evaluate import make
    from benchmarks.mini.cases import make_cases

    class Recorder:
        def make(self, *given, **more):
            self.given, self.more = given, more

    (case,) = make_cases(1, 11)
    pipeline = Recorder()
    make(pipeline, case, ALL, "generate", seed=3)
    prompt, pictures, mask, frames, mode = pipeline.given
    assert (prompt, frames, mode) == (case.prompt, 8, "generate") and torch.equal(pictures, case.source[:1])
    assert torch.equal(mask, case.source_mask[:1])
    assert pipeline.more == {"alpha_image": 1.0, "pyramid_strength": 1.0, "seed": 3}
    make(pipeline, case, Alignments(sda=False, apa=False), "edit")
    assert pipeline.given[0] == case.edit_prompt and pipeline.given[2] is None and torch.equal(pipeline.given[1], case.source)
    assert pipeline.more == {"alpha_image": 0.0, "pyramid_strength": 1.0}
    make(pipeline, case, Alignments(hfa=False), "generate")
    assert pipeline.more == {"alpha_image": 1.0, "pyramid_strength": 0.0}


def test_tables_compare_each_variant_with_the_same_seeds_and_clips():
    from benchmarks.ablations import table
    from benchmarks.ablations.variants import ALPHAS

    def training(loss, *nearest):
        return {"loss": loss, "alphas": {"middle": [0.5, 0.25]}, "generate": {"nearest": list(nearest)}}

    results = {"alphas_1_1": [training(0.5, 1.0, 0.0), training(0.3, 1.0, 0.0)],
               "trained": [training(0.4, 1.0, 1.0), training(0.2, 1.0, 1.0)]}  # fmt: skip
    lines = table.compare(ALPHAS, results, "generate")
    assert lines == [
        ["", "nearest of 8", "training loss"],
        ["alphas_1_1", "50 ± 50 ± 0", "0.4000 ± 0.1000"],
        ["trained", "100 ± 0 ± 0", "0.3000 ± 0.1000"],
        ["alphas_1_1 - trained", "-50 ± 50 ± 0", "+0.1000 ± 0.0000"],
    ]
    results["alphas_1_1"].pop()
    assert table.compare(ALPHAS, results, "generate")[3] == ["alphas_1_1 - trained", "-50 ± 50", "+0.1000"]
    assert table.alphas(results)[1] == ["alphas_1_1, seed 0", "0.50, 0.25"]
    assert table.markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_command_trains_and_measures_what_is_missing_and_nothing_twice(comfy_session, tmp_path, monkeypatch, capsys):
    from benchmarks.ablations import __main__ as command
    from magdiff_core.train import diffusion
    from magdiff_core.train.checkpoint import save_state

    trained, measured = [], []

    def train(folder, steps, seed, alignments, **_):
        trained.append((folder.parent.name, seed, alignments.alphas))
        folder.mkdir(parents=True)
        for name in ("magdiff-mini.safetensors", "magdiff-mini-adapter.safetensors"):
            (folder / name).touch()
        save_state(folder / "state.pt", {"step": steps, "smooth": 0.5 + seed})

    def evaluate(folder, cases, alignments, edits, shown, seed, **sampling):
        measured.append(folder.parent.name)
        clips = torch.zeros(len(cases), 8, 64, 64, 3, dtype=torch.uint8)
        return {"alphas": {"middle": [0.5, 0.5]}, "generate": {"nearest": [1.0] * len(cases)}}, {"generate": clips}

    monkeypatch.setattr(diffusion, "run", train)
    monkeypatch.setattr(command, "evaluate", evaluate)
    arguments = ["ablations", "alphas", "--out", str(tmp_path), "--clips", "2", "--steps", "4"]

    def run(*more):
        trained.clear(), measured.clear()
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        return command.main()

    assert run() == 2 and "add --train" in capsys.readouterr().err
    assert run("--train") == 0
    assert trained == [("alphas_1_1", 0, (1.0, 1.0)), ("alphas_0.3_0.7", 0, (0.3, 0.7)), ("alphas_0.5_0.5", 0, (0.5, 0.5)),
                       ("alphas_0.7_0.3", 0, (0.7, 0.3)), ("without_apa", 0, None), ("trained", 0, None)]  # fmt: skip
    assert len(measured) == 6
    assert run("--train", "--seeds", "2") == 0
    assert [seed for _, seed, _ in trained] == [1] * 6 and len(measured) == 6
    assert "| trained | 100 ± 0 ± 0 | 1.0000 ± 0.5000 |" in (tmp_path / "table.md").read_text("utf-8")
    assert run("--seeds", "2") == 0 and not trained and not measured
    assert run("--sampling-steps", "3") == 0 and not trained and len(measured) == 6
    assert (tmp_path / "sheet.png").is_file()
