"""Attention maps of words: which tokens, which weights, how much of them on the subject. Nothing is sampled."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.mini import attention_maps
from benchmarks.mini.cases import make_cases
from benchmarks.mini.text_attention import TextAttention, by_site, focus, over_sites, word_places
from magdiff_core.data.vocabulary import WordTokenizer

PROMPT = "a red striped star moves left over a blue dotted background"


def test_places_of_words():
    """Place 0 is the start token."""
    assert [word_places(PROMPT, word) for word in ("red", "star", "moves left", "blue")] == [
        slice(2, 3), slice(4, 5), slice(5, 7), slice(9, 10),
    ]  # fmt: skip
    assert WordTokenizer()(PROMPT)["input_ids"][4] == WordTokenizer().ids["star"]


@pytest.mark.parametrize("phrase", ["circle", "a", "moves right", ""])
def test_words_that_do_not_stand_there_once_are_refused(phrase):
    with pytest.raises(ValueError, match="it must stand there once"):
        word_places(PROMPT, phrase)


def test_focus_counts_attention_on_the_subject_against_its_area():
    mask = torch.zeros(2, 8, 8)
    mask[:, :4, :4] = 1  # a quarter: one place of four
    even = torch.ones(2, 2, 2)
    assert focus(even, mask) == pytest.approx((0.25, 0.25))
    on_subject = torch.zeros(2, 2, 2)
    on_subject[:, 0, 0] = 5
    assert focus(on_subject, mask) == pytest.approx((1.0, 0.25))
    assert focus(torch.tensor([[[3.0, 1], [0, 0]]] * 2), mask) == pytest.approx((0.75, 0.25))
    # a place that the subject covers by half counts half
    mask[:, 2:4, :4] = 0
    assert focus(on_subject, mask) == pytest.approx((0.5, 0.125))
    assert focus(even, torch.zeros(2, 8, 8)) is None
    with pytest.raises(ValueError, match=r"\[2, 2, 2\].*\[2, 7, 8\]"):
        focus(even, torch.ones(2, 7, 8))


def options(kinds):
    return {"n_heads": 2, "cond_or_uncond": kinds}


def test_the_observed_attention_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 6, 8), torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    observer = TextAttention()
    assert torch.allclose(observer(q, k, v, options([1, 0])), wanted, atol=1e-6)
    (kept,) = observer.kept
    assert kept.shape == (2, 6, 3) and torch.allclose(kept.sum(-1), torch.ones(2, 6))


def test_the_prompts_rows_are_kept_wherever_they_stand():
    """A key along the query draws all of its weight; the prompt's rows read token 2, the negative's token 0."""
    q, v = torch.ones(2, 4, 2), torch.zeros(2, 3, 2)
    k = torch.zeros(2, 3, 2)
    k[0, 2], k[1, 0] = 50, 50
    for kinds, order in (([0, 1], [0, 1]), ([1, 0], [1, 0])):
        observer = TextAttention()
        observer(q, k[order], v, options(kinds))
        assert observer.kept[0][0, 0].tolist() == pytest.approx([0, 0, 1])
    alone = TextAttention()
    alone(q, k, v, options([1]))
    assert not alone.kept


def test_weights_of_the_asked_steps_on_the_grid_of_the_frames():
    def site(places, *values):
        observer = TextAttention()
        observer.kept = [torch.full((3, places, 5), float(value)) for value in values]
        return observer

    weights = by_site({"coarse": site(8, 1, 2, 3), "fine": site(32, 5, 6, 8)}, slice(1, 3), 64, 128)
    assert weights["coarse"].shape == (3, 2, 4, 5) and weights["fine"].shape == (3, 4, 8, 5)
    assert weights["coarse"].unique().tolist() == [2.5] and weights["fine"].unique().tolist() == [7]
    with pytest.raises(ValueError, match="sample with the observed model"):
        by_site({"empty": TextAttention()}, slice(0, 5), 64, 64)


def test_sites_of_different_sizes_count_the_same():
    coarse, fine = torch.tensor([[[1.0, 0], [0, 0]]]), torch.ones(1, 4, 4)
    joined = over_sites([coarse, fine])
    assert joined[0].tolist() == [[1.0, 1.0, 0.5, 0.5]] * 2 + [[0.5] * 4] * 2


@pytest.fixture(scope="module")
def clip():
    """A true clip; its shape word is read on the subject alone, its motion word everywhere."""
    (case,) = make_cases(1, 3)
    weights = torch.zeros(8, 16, 16, 24)
    weights[..., word_places(case.prompt, attention_maps.phrases(case)["motion"])] = 0.1
    weights[..., word_places(case.prompt, attention_maps.phrases(case)["background"])] = 0.1
    mask = F.avg_pool2d(case.target_mask[:, None], 4)[:, 0]
    weights[..., word_places(case.prompt, attention_maps.phrases(case)["shape"])] = (mask > 0.99).float()[..., None]
    return case, attention_maps.see(case, case.target, {"one": weights, "other": weights})


def words_of(case):
    return len(attention_maps.phrases(case)["motion"].split())


def test_words_of_a_case_are_seen_where_they_are_read(clip):
    case, seen = clip
    words = attention_maps.phrases(case)
    assert list(words) == list(attention_maps.WORDS) and all(phrase in case.prompt for phrase in words.values())
    area = float(case.target_mask.mean())
    assert attention_maps.ratio(seen.focus["motion"]) == pytest.approx(1.0) == attention_maps.ratio(seen.focus["background"])
    assert attention_maps.ratio(seen.focus["shape"]) > 0.7 / area
    summed = attention_maps.summary([seen, seen])
    one = {"mean": pytest.approx(1.0), "error": pytest.approx(0.0, abs=1e-6), "clips": 2}
    assert summed["motion"] == {
        **one,
        "sites": dict.fromkeys(("one", "other"), {"share": pytest.approx(words_of(case) * 0.1), **one}),
    }


def test_clips_without_a_subject_are_left_out_of_the_mean(clip):
    _, seen = clip
    nothing = dict.fromkeys(attention_maps.WORDS)
    lost = attention_maps.Seen(seen.frames, seen.maps, nothing, {site: dict.fromkeys(nothing, (0.1, None)) for site in seen.sites})
    assert attention_maps.summary([seen, lost])["shape"]["clips"] == 1
    assert math.isnan(attention_maps.summary([lost])["shape"]["mean"])
    assert attention_maps.mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_picture_shows_frames_above_maps(clip, tmp_path):
    case, seen = clip
    attention_maps.draw([case], {"adaptive": [seen], "fixed": [seen]}, ["caption"], tmp_path / "maps.png")
    picture = Image.open(tmp_path / "maps.png")
    step = attention_maps.TILE + attention_maps.GAP
    x, y = attention_maps.LABELS + 4, 34 + 20 + 4
    frame, shape, motion = (picture.getpixel((x, y + row * step)) for row in range(3))
    assert frame == pytest.approx([round(255 * float(value)) for value in case.target[0, 4, 4]], abs=24)
    # in the corner: nothing of the shape word, and the even map of the motion word at its largest
    assert shape == (0, 0, 0) and motion == (255, 255, 255)
