"""Evaluate Clips: what is measured of which inputs, in the node, with tiny model files; and what is refused."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import metric_files
import pytest
import torch
from safetensors.torch import save_file

from magdiff_core.metrics.evaluation import METRICS

FRAMES, HEIGHT, WIDTH = 4, 40, 56


@pytest.fixture(scope="module")
def node(pack):
    return pack["MagDiffEvaluateClips"]


@pytest.fixture(scope="module")
def peer(pack):
    return metric_files.tiny_clip()


@pytest.fixture(scope="module")
def files(pack, peer):
    """Model files in models/metrics and models/clip_vision of the base directory."""
    import folder_paths

    metrics, vision = Path(folder_paths.models_dir, "metrics"), Path(folder_paths.models_dir, "clip_vision")
    for folder in (metrics, vision):
        folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in peer.state_dict().items()}
    save_file({key: value for key, value in state.items() if key.startswith("vis")}, vision / "half_tiny.safetensors")
    save_file({key: value for key, value in state.items() if key != "text_projection.weight"}, vision / "no_projection.safetensors")
    metric_files.write_clip(metrics)
    metric_files.write_dino(metrics)
    metric_files.write_script(metrics)
    return {
        "clip": "clip_tiny.safetensors",
        "half": "half_tiny.safetensors",
        "dino": "dino/model.safetensors",
        "script": "colours.pt",
    }


def clip(seed=0, frames=FRAMES):
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def run(node, frames, *, prompt="", clip="none", dino="none", i3d="none", c3d="none", allow=False, **lists):
    as_list = lambda value: value if isinstance(value, list) else [value]  # noqa: E731
    result = node.execute(
        as_list(frames),
        as_list(prompt),
        [clip],
        [dino],
        [i3d],
        [c3d],
        [allow],
        **{name: as_list(value) for name, value in lists.items()},
    )
    text, plot, document = result.args
    return text, plot, json.loads(document)


def test_psnr_outside_and_inside_of_the_region(node):
    source = torch.full((FRAMES, HEIGHT, WIDTH, 3), 0.5)
    edited, edit_mask = source.clone(), torch.zeros(1, HEIGHT, WIDTH)
    edit_mask[:, :20] = 1
    edited[:, :20] += 0.5
    edited[2, 20:] += 0.1
    text, plot, document = run(node, edited, source_frames=source, edit_mask=edit_mask)
    outside, inside = document["metrics"]["psnr_outside"], document["metrics"]["psnr_inside"]
    # only frame 2 differs, by 0.1: 20 dB there, over 4 frames 6.02 dB more
    assert outside["clips"][0]["frames"] == pytest.approx([100, 100, 20, 100], abs=1e-4)
    assert outside["value"] == pytest.approx(20 + 10 * math.log10(4), abs=1e-4)
    assert inside["value"] == pytest.approx(-10 * math.log10(0.25), abs=1e-4)
    assert "PSNR outside the edit region" in text and "26.02 dB" in text
    assert document["clips"] == [{"frames": 4, "width": WIDTH, "height": HEIGHT}]
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[-1] == 3 and 0 <= plot.min() and plot.max() <= 1
    kept = run(node, edited, source_frames=source, keep_mask=1 - edit_mask)[2]["metrics"]
    assert kept["psnr_outside"]["value"] == outside["value"]
    whole = run(node, edited, source_frames=source)[2]["metrics"]
    assert list(whole) == ["psnr"]


def test_text_alignment_and_consistency_equal_transformers(node, files, peer):
    from transformers import CLIPTokenizer

    from magdiff_core.host.session import find_comfyui
    from magdiff_core.metrics.pictures import for_clip

    frames, prompt = clip(), "a red ball, rolling left"
    metrics = run(node, frames, prompt=prompt, clip=files["clip"])[2]["metrics"]
    tokens = CLIPTokenizer.from_pretrained(find_comfyui() / "comfy" / "sd1_tokenizer")([prompt], return_tensors="pt")
    seen = peer.get_image_features(for_clip(frames, 32))
    said = peer.get_text_features(**tokens)
    seen, said = (getattr(output, "pooler_output", output).detach() for output in (seen, said))
    seen, said = seen / seen.norm(dim=1, keepdim=True), said / said.norm(dim=1, keepdim=True)
    expected = (seen @ said.T)[:, 0]
    assert metrics["textual_alignment"]["clips"][0]["frames"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert metrics["textual_alignment"]["value"] == pytest.approx(float(expected.mean()), abs=1e-5)
    similarity = seen @ seen.T
    assert metrics["consistency_consecutive"]["value"] == pytest.approx(float(similarity.diagonal(1).mean()), abs=1e-5)
    pairs = similarity[~torch.eye(FRAMES, dtype=torch.bool)]
    assert metrics["consistency_all_pairs"]["value"] == pytest.approx(float(pairs.mean()), abs=1e-5)
    assert metrics["consistency_consecutive"]["clips"][0]["frames"][0] is None


def test_another_prompt_gives_another_alignment_and_none_gives_none(node, files):
    frames = clip()
    values = [run(node, frames, prompt=prompt, clip=files["clip"])[2]["metrics"] for prompt in ("a dog", "a house", " ")]
    assert values[0]["textual_alignment"] != values[1]["textual_alignment"]
    assert "textual_alignment" not in values[2] and "consistency_all_pairs" in values[2]
    assert values[0]["consistency_all_pairs"] == values[1]["consistency_all_pairs"]


def test_a_clip_without_its_text_half_never_measures_alignment(node, files):
    metrics = run(node, clip(), clip=files["half"])[2]["metrics"]
    assert list(metrics) == ["consistency_consecutive", "consistency_all_pairs"]
    with pytest.raises(ValueError, match="half_tiny.safetensors holds only the picture half.*leave prompt empty"):
        run(node, clip(), prompt="a dog", clip=files["half"])
    with pytest.raises(ValueError, match="no_projection.safetensors has no text_projection.weight"):
        run(node, clip(), prompt="a dog", clip="no_projection.safetensors")


def test_long_prompts_are_cut_and_said_so(node, files):
    text, _, document = run(node, clip(), prompt="dog " * 100, clip=files["clip"])
    assert "Warning: the prompt is longer than CLIP reads" in text and document["warnings"]


def test_a_single_frame_is_measured_but_has_no_consistency(node, files):
    text, plot, document = run(node, clip(frames=1), prompt="a dog", clip=files["clip"])
    assert list(document["metrics"]) == ["textual_alignment"]
    assert "no consistency of frames" in text and plot.shape[0] == 1


def test_dino_score_compares_the_subject_not_what_is_around_it(node, files):
    subject, mask = clip(3, 1), torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 8:32, 8:32] = 1
    given = subject * mask[..., None]
    frames = torch.cat([subject * mask[..., None] + clip(seed, 1) * (1 - mask[..., None]) for seed in (4, 5, 6)])
    value = run(node, frames, dino=files["dino"], subject=given, subject_mask=mask)[2]["metrics"]["dino_score"]
    assert value["value"] == pytest.approx(1.0, abs=1e-5)
    text, _, document = run(node, frames, dino=files["dino"], subject=given)
    assert document["metrics"]["dino_score"]["value"] < 0.9999 and "compares whole frames" in text
    # frames without the subject do not count
    masks = mask.repeat(3, 1, 1)
    masks[1] = 0
    per_frame = run(node, frames, dino=files["dino"], subject=given, subject_mask=masks)[2]["metrics"]["dino_score"]["clips"][0]
    assert per_frame["frames"][1] is None and per_frame["value"] == pytest.approx(1.0, abs=1e-5)


def test_black_subject_frames_do_not_count(node, files):
    subject, frames = clip(3, 1), clip(4)
    one = run(node, frames, dino=files["dino"], subject=subject)[2]["metrics"]["dino_score"]
    padded = torch.cat((subject, torch.zeros_like(subject)))
    assert run(node, frames, dino=files["dino"], subject=padded)[2]["metrics"]["dino_score"] == one
    with pytest.raises(ValueError, match="subject is black all over"):
        run(node, frames, dino=files["dino"], subject=torch.zeros_like(subject))


def test_a_list_of_clips_is_measured_together(node, files):
    clips, sources = [clip(seed) for seed in (1, 2, 3)], [clip(seed) for seed in (4, 5, 6)]
    text, _, document = run(node, clips, source_frames=sources, prompt=["a dog", "a cat", "a cow"], clip=files["clip"])
    pairs = list(zip(clips, sources))
    alone = [run(node, frames, source_frames=source)[2]["metrics"]["psnr"]["value"] for frames, source in pairs]
    psnr = document["metrics"]["psnr"]
    assert [entry["value"] for entry in psnr["clips"]] == alone
    assert psnr["value"] == pytest.approx(sum(alone) / 3)
    assert psnr["spread"] == pytest.approx(statistics.stdev(alone))
    assert "3 clips of 4 frames, 56x40" in text
    alignment = document["metrics"]["textual_alignment"]["clips"]
    single = run(node, clips[1], prompt="a cat", clip=files["clip"])[2]["metrics"]["textual_alignment"]["value"]
    assert alignment[1]["value"] == pytest.approx(single, abs=1e-6)
    with pytest.raises(ValueError, match="source_frames is a list of 2, frames of 3 clips"):
        run(node, clips, source_frames=sources[:2])


def test_fvd_of_lists_states_files_counts_and_its_limits(node, files):
    made, real = [clip(seed, 10) for seed in range(3)], [clip(seed, 10) * 0.5 for seed in range(10, 14)]
    text, plot, document = run(node, made, i3d=files["script"], allow=True, real_clips=real)
    features = [torch.stack([metric_files.Colours()(a.movedim(-1, 0)[None] * 2 - 1)[0] for a in clips]) for clips in (made, real)]
    assert document["metrics"]["fvd"]["value"] > 0 and "clips" not in document["metrics"]["fvd"]
    # the means differ by a half in each colour (by 0.5 of 1 in the range -1..1), which is the most of it
    means = (features[0].mean(0) - features[1].mean(0)).square().sum()
    assert document["metrics"]["fvd"]["value"] == pytest.approx(float(means), rel=0.15)
    assert "means nothing by itself" in text and "compared with 4 clips of 10 frames, 56x40" in text
    assert document["models"]["i3d"]["file"] == "colours.pt" and len(document["models"]["i3d"]["sha256"]) == 64
    assert len(document["real_clips"]) == 4 and plot.shape[0] == 1
    same = run(node, made, i3d=files["script"], allow=True, real_clips=made)[2]["metrics"]["fvd"]["value"]
    assert same == pytest.approx(0.0, abs=1e-5)


def test_inception_score_and_short_clips_are_stated(node, files):
    text, _, document = run(node, [clip(seed, 8) for seed in range(3)], c3d=files["script"], allow=True)
    assert document["metrics"]["video_is"]["value"] >= 1
    assert "Clips of 8 frames were slowed down to 16" in text and "too low" in text


def test_networks_and_progress_go_over_every_frame_once(node, files, monkeypatch):
    import sys

    module = sys.modules[node.__module__]
    totals, ticks = [], []

    def counter(total):
        totals.append(total)
        return lambda: ticks.append(1)

    monkeypatch.setattr(module, "frame_counter", counter)
    made, real = [clip(seed, 18) for seed in range(2)], [clip(seed, 18) for seed in range(3)]
    run(
        node, made, clip=files["clip"], dino=files["dino"], i3d=files["script"], c3d=files["script"], allow=True,
        subject=clip(1, 1), real_clips=real,
    )  # fmt: skip
    assert totals == [4 * 36 + 54] == [len(ticks)]


def test_torchscript_is_refused_unless_it_was_allowed(node, files):
    with pytest.raises(ValueError, match="colours.pt is TorchScript.*allow_torchscript"):
        run(node, [clip(seed, 10) for seed in range(2)], i3d=files["script"], real_clips=[clip(9, 10)] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to measure"),
        ({"subject": clip(1, 1)}, "subject is wired but dino_model is none|nothing to measure"),
        ({"source_frames": clip(1), "subject": clip(1, 1)}, "subject is wired but dino_model is none"),
        ({"dino": "dino"}, "dino_model is chosen but subject is not wired"),
        ({"edit_mask": torch.ones(1, 40, 56)}, "nothing to measure|source_frames is not"),
        ({"source_frames": clip(1), "edit_mask": torch.ones(1, 40, 56)}, "nothing lies outside the edit region"),
        ({"source_frames": clip(1), "edit_mask": torch.ones(3, 40, 56)}, "edit_mask has 3 frames, the images have 4"),
        (
            {"source_frames": clip(1), "edit_mask": torch.zeros(1, 40, 56), "keep_mask": torch.zeros(1, 40, 56)},
            "both wired",
        ),
        ({"source_frames": clip(1, 3)}, "frames has 4 frames, source_frames 3"),
        ({"source_frames": clip(1)[:, :, :40]}, "frames are 56x40, source_frames 40x40, another shape"),
        ({"i3d": "script"}, "real_clips is not wired"),
        ({"i3d": "script", "real_clips": clip(1, 5)}, "frames has clips of 4 frames, real_clips of 5"),
        ({"i3d": "script", "real_clips": clip(1)}, "frames holds 1 clip, real_clips 1 clip: FVD compares two sets"),
        ({"clip": "clip", "real_clips": clip(1)}, "real_clips is wired but i3d_model is none"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(node, files, changes, message):
    changes = {name: files.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        run(node, clip(), allow=True, **changes)


def test_a_source_of_a_rounded_size_is_resized(node):
    across = torch.linspace(0, 1, WIDTH + 1)[None, None, :, None].expand(FRAMES, HEIGHT + 1, -1, 3)
    frames = torch.linspace(0, 1, WIDTH)[None, None, :, None].expand(FRAMES, HEIGHT, -1, 3)
    assert run(node, frames, source_frames=across)[2]["metrics"]["psnr"]["value"] > 40


def test_a_clip_of_a_size_that_revideo_makes_is_measured(node):
    """640x480 is sampled at 1152x896: the shape changes by 3.7 %."""
    source = torch.linspace(0, 1, 640)[None, None, :, None].expand(1, 480, -1, 3)
    frames = torch.linspace(0, 1, 1152)[None, None, :, None].expand(1, 896, -1, 3)
    edit_mask = torch.zeros(1, 480, 640)
    edit_mask[:, 100:200, 100:200] = 1.0
    metrics = run(node, frames, source_frames=source, edit_mask=edit_mask)[2]["metrics"]
    assert metrics["psnr_outside"]["value"] > 40


def test_a_file_that_is_another_model_is_named(node, files):
    with pytest.raises(ValueError, match="clip_tiny.safetensors is no DINO file"):
        run(node, clip(), dino=files["clip"], subject=clip(1, 1))
    with pytest.raises(ValueError, match="model.safetensors is no CLIP file"):
        run(node, clip(), clip=files["dino"])


def test_the_lists_offer_none_first_and_then_files(pack, files):
    from magdiff_core.host import metric_models

    names = metric_models.file_names(metric_models.CLIP_FOLDERS)
    assert names[0] == "none" and {files["clip"], files["half"]} <= set(names) and len(set(names)) == len(names)


def test_every_metric_has_a_title_and_the_per_frame_ones_an_axis():
    assert all(metric.title and (metric.unit or not metric.per_frame) for metric in METRICS.values())
