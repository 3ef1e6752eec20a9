"""The selection rules of curation, with known answers: Algorithm 1, categories, the three filters, shards' split, histogram."""

from __future__ import annotations

import pytest

from magdiff_core.data.curation import filters
from magdiff_core.data.curation.chart import bars_of
from magdiff_core.data.curation.filters import Dropped
from magdiff_core.data.curation.selection import category_of, select_label
from magdiff_core.data.curation.shards import Part
from magdiff_core.data.curation.subjects import MEANINGLESS, SUBJECTS, read_subjects, read_words
from magdiff_core.data.curation.words import tidy_answer

ALIKE = {
    ("puppy", "dog"): 0.8, ("puppy", "animal"): 0.7, ("fog", "dog"): 0.1, ("fog", "animal"): 0.2,
    ("hill", "dog"): 0.3, ("hill", "animal"): 0.25, ("wolf", "dog"): 0.6, ("wolf", "animal"): 0.6,
}  # fmt: skip


def alike(one, other):
    return ALIKE.get((one, other), 0.0)


def test_the_answer_is_taken_when_it_is_like_a_listed_word():
    choice = select_label("puppy", ["animal", "dog"], ["wolf", "hill"], alike, theta=0.75)
    assert (choice.label, choice.source) == ("puppy", "answer")
    assert (choice.answer_score, choice.noun_score) == (0.8, 0.6)
    # theta itself is not enough
    assert select_label("puppy", ["animal", "dog"], ["wolf", "hill"], alike, theta=0.8).label == "wolf"


def test_else_the_noun_that_is_most_like_any_listed_word():
    choice = select_label("fog", ["dog", "animal"], ["hill", "wolf"], alike, theta=0.5)
    assert (choice.label, choice.source, choice.noun_score) == ("wolf", "caption", 0.6)
    # the list's order and then the nouns' decides between equals, and a low score is still the greatest
    assert select_label("", ["dog"], ["stone", "hill"], alike, 0.5).label == "hill"
    assert select_label("", ["dog"], ["x", "y"], alike, 0.5).label == "x"
    assert select_label("fog", ["dog"], [], alike, 0.5) == select_label("fog", ["dog"], [], alike, 0.9)
    assert select_label("fog", ["dog"], [], alike, 0.5).label == ""
    with pytest.raises(ValueError, match="list is empty"):
        select_label("dog", [], ["dog"], alike, 0.5)


def test_category_is_that_of_the_most_similar_word():
    listed = {"person": ["man"], "animal": ["animal", "dog"]}
    assert category_of("puppy", listed, alike, 0.5) == "animal"
    assert category_of("fog", listed, alike, 0.5) == "others"


def test_answers_lose_articles_and_punctuation():
    assert tidy_answer(" A brown Dog. ") == "brown dog"
    assert tidy_answer("it is the man's hat!") == "man's hat"
    assert tidy_answer("the") == ""


def test_each_filter_at_its_bounds():
    filters.check_short_side(512, 900)
    filters.check_short_side(900, 512)
    for size in ((511, 2000), (2000, 511)):
        with pytest.raises(Dropped, match="less than 512") as dropped:
            filters.check_short_side(*size)
        assert dropped.value.rule == "short side"

    assert filters.check_area([0.05]) == 0.05 and filters.check_area([0.60]) == 0.60
    assert filters.check_area([0.0, 0.2]) == pytest.approx(0.1)
    with pytest.raises(Dropped, match="4.9 % of the picture, less than 5 %"):
        filters.check_area([0.049])
    with pytest.raises(Dropped, match="61.0 % of the picture, more than 60 %"):
        filters.check_area([0.61])

    filters.check_meaning("close dog", ["close", "dog"], MEANINGLESS, known=True)
    for label, nouns, known in (("", [], False), ("qzx", ["qzx"], False), ("view", ["view"], True), ("running", [], True)):
        with pytest.raises(Dropped) as dropped:
            filters.check_meaning(label, nouns, MEANINGLESS, known)
        assert dropped.value.rule == "label"


def test_lists_of_words(tmp_path):
    assert list(SUBJECTS) == ["person", "animal", "objects"]
    clash = {word for words in SUBJECTS.values() for word in words} & MEANINGLESS
    assert clash <= {"object"}
    (tmp_path / "list.txt").write_text("animal: dog, Cat\n\nvehicle: car\nanimal: bird\n")
    assert read_subjects(tmp_path / "list.txt") == {"animal": ["dog", "cat", "bird"], "vehicle": ["car"]}
    (tmp_path / "bad.txt").write_text("animal: dog\ncat, bird\n")
    with pytest.raises(ValueError, match="line 2"):
        read_subjects(tmp_path / "bad.txt")
    (tmp_path / "none.txt").write_text("animal:\n")
    with pytest.raises(ValueError, match="no word"):
        read_subjects(tmp_path / "none.txt")
    (tmp_path / "words.txt").write_text("View, scene\nThing\n")
    assert read_words(tmp_path / "words.txt") == {"view", "scene", "thing"}


def test_shards_are_split_without_gap_or_overlap(monkeypatch):
    shards = list(range(11))
    parts = [Part.parse(f"{index}/4").of(shards) for index in range(4)]
    assert sorted(sum(parts, [])) == shards and parts[1] == [1, 5, 9]
    assert Part.parse(None) == Part(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Part.parse(None) == Part(2, 3)
    for wrong in ("3/3", "1", "a/2", "-1/2"):
        with pytest.raises(ValueError, match="from 0 to n - 1"):
            Part.parse(wrong)


def test_histograms_have_round_steps_and_no_gaps():
    assert bars_of([]) == []
    assert bars_of([3, 5, 5, 6.9]) == [("3", 1), ("4", 0), ("5", 2), ("6", 1)]
    assert bars_of([0, 9, 10, 31], most=4) == [("0-9", 2), ("10-19", 1), ("20-29", 0), ("30-39", 1)]
    bars = bars_of(range(100))
    assert sum(count for _, count in bars) == 100 and bars[0] == ("0-9", 10) and len(bars) == 10
