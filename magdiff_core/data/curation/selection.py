"""Algorithm 1 of MagDiff's supplement: which word names the subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Similarity = Callable[[str, str], float]
"""How alike two words are, at most 1."""


@dataclass(frozen=True)
class Choice:
    """The label ("" = none), where it comes from ("answer", "caption" or ""), and both greatest similarities."""

    label: str
    source: str
    answer_score: float
    noun_score: float


def select_label(answer: str, listed: Sequence[str], nouns: Sequence[str], similarity: Similarity, theta: float) -> Choice:
    """The answer when it is like a word of the subject-aware list, else the noun that is most like one.

    MagDiff supplement, Algorithm 1: `e = A` when max Similarity(A, W_i) > theta, else the noun S_j of the greatest
    Similarity(S_j, W_i). Of equals the first is taken, in the order of the list.

    Args:
        answer: A, what BLIP-2 calls the foreground; "" is like nothing.
        listed: W, the subject-aware list, not empty.
        nouns: S, the nouns of the caption.
        similarity: of two words.
        theta: threshold; the paper gives no number.

    Raises:
        ValueError: `listed` is empty.
    """
    if not listed:
        raise ValueError("the subject-aware list is empty: write words such as person, dog, car into it")
    answer_score = max(similarity(answer, word) for word in listed) if answer else 0.0
    scores = [(similarity(noun, word), noun) for word in listed for noun in nouns]
    noun_score, noun = max(scores, key=lambda pair: pair[0], default=(0.0, ""))
    if answer and answer_score > theta:
        return Choice(answer, "answer", answer_score, noun_score)
    return Choice(noun, "caption" if noun else "", answer_score, noun_score)


def category_of(label: str, listed: dict[str, Sequence[str]], similarity: Similarity, theta: float) -> str:
    """The category whose word is most like the label; "others" when none is more alike than `theta`.

    Args:
        listed: words of the subject-aware list by category.
    """
    scores = [(similarity(label, word), category) for category, words in listed.items() for word in words]
    score, category = max(scores, key=lambda pair: pair[0], default=(0.0, ""))
    return category if score > theta else "others"
