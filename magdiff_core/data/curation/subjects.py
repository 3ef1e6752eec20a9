"""The subject-aware list by category, and words that name no subject; both may be replaced by a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

SUBJECTS: dict[str, Sequence[str]] = {
    "person": (
        "person", "people", "man", "woman", "men", "women", "boy", "girl", "child", "children", "baby", "couple", "family", "crowd",
        "dancer", "athlete", "player", "worker", "chef", "doctor", "musician", "face", "hand",
    ),
    "animal": (
        "animal", "dog", "cat", "bird", "fish", "horse", "cow", "sheep", "lion", "tiger", "elephant", "bear", "monkey", "rabbit",
        "duck", "butterfly", "insect", "bee", "turtle", "jellyfish", "snake", "deer", "squirrel", "puppy", "kitten",
    ),
    "objects": (
        "object", "car", "bus", "train", "truck", "bicycle", "motorcycle", "boat", "ship", "airplane", "drone", "robot", "toy",
        "flower", "tree", "plant", "leaf", "fruit", "food", "cake", "pizza", "coffee", "cup", "glass", "bottle", "candle", "book",
        "phone", "computer", "laptop", "guitar", "piano", "clock", "lamp", "chair", "table", "umbrella", "ball", "building",
        "house", "castle", "tower", "bridge", "statue", "balloon", "kite", "fire", "waterfall", "volcano", "mountain", "rock",
    ),
}  # fmt: skip
"""W of Algorithm 1. The paper names its kinds ("animal, dog, cat, ...") and not its words; these are this project's."""

MEANINGLESS = frozenset((
    "foreground", "background", "picture", "image", "photo", "photograph", "photography", "video", "footage", "clip", "film",
    "movie", "shot", "close", "closeup", "close-up", "view", "scene", "scenery", "frame", "screen", "camera", "angle", "focus",
    "blur", "motion", "slow", "time", "lapse", "timelapse", "thing", "things", "something", "anything", "nothing", "everything",
    "someone", "anyone", "subject", "object", "objects", "item", "stuff", "part", "side", "top", "bottom", "front", "back",
    "middle", "center", "centre", "left", "right", "area", "place", "way", "kind", "type", "lot", "group", "number", "set",
    "pair", "piece", "color", "colour", "black", "white", "light", "dark", "darkness", "shadow", "day", "night", "answer",
    "question", "unknown", "none", "no", "yes", "it", "this", "that", "they", "other", "others",
))  # fmt: skip
"""Words that say nothing about what is seen."""


def read_subjects(file: Path) -> dict[str, Sequence[str]]:
    """Lines `category: word, word, ...`. Raises ValueError when a line has no category, or there is no word."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), 1):
        category, colon, words = line.partition(":")
        if not line.strip():
            continue
        if not colon or not category.strip():
            raise ValueError(f"{file} line {number}: write `category: word, word`, for example `animal: dog, cat`")
        found.setdefault(category.strip(), []).extend(filter(None, (word.strip().lower() for word in words.split(","))))
    if not any(found.values()):
        raise ValueError(f"{file} holds no word: write lines such as `animal: dog, cat`")
    return found


def read_words(file: Path) -> Collection[str]:
    """Words by lines or commas."""
    return frozenset(filter(None, (word.strip().lower() for word in file.read_text("utf-8-sig").replace(",", "\n").splitlines())))
