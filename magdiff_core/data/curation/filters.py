"""The three rules of MagDiff's supplement (section C) that clips are dropped by."""

from __future__ import annotations

from collections.abc import Collection, Sequence

SHORT_SIDE = 512
"""Pixels that the shorter side must have."""

LEAST_AREA, MOST_AREA = 0.05, 0.60
"""Share of the picture that the subject must cover."""


class Dropped(Exception):
    """A clip that a rule drops. `rule` is a short name for the table, the text says why."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule


def check_short_side(width: int, height: int, least: int = SHORT_SIDE) -> None:
    """Rule 1. Raises Dropped when the shorter side has less than `least` pixels."""
    if min(width, height) < least:
        raise Dropped("short side", f"{width} x {height}: the short side has less than {least} pixels")


def check_area(shares: Sequence[float], least: float = LEAST_AREA, most: float = MOST_AREA) -> float:
    """Rule 2: the mean share of the picture that the subject covers, over the frames. Raises Dropped when it is out of bounds."""
    share = sum(shares) / len(shares)
    if share < least:
        raise Dropped("area", f"the subject covers {100 * share:.1f} % of the picture, less than {100 * least:g} %")
    if share > most:
        raise Dropped("area", f"the subject covers {100 * share:.1f} % of the picture, more than {100 * most:g} %")
    return share


def check_meaning(label: str, nouns: Sequence[str], meaningless: Collection[str], known: bool) -> None:
    """Rule 3. Raises Dropped when the label is empty, its language model does not know it, or no noun in it names anything.

    Args:
        label: as Algorithm 1 gave it.
        nouns: of the label.
        meaningless: words that name nothing.
        known: whether the label has a word vector.
    """
    if not label:
        raise Dropped("label", "no label: the answer is like no listed word, and the caption has no noun")
    if not known:
        raise Dropped("label", f"the label {label!r} is no known word")
    if not any(noun not in meaningless for noun in nouns):
        raise Dropped("label", f"the label {label!r} has no clear meaning")
