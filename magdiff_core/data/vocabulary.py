"""Words of the small model's prompts: a word-level tokenizer.

Every word has an embedding that training has seen; a word that is neither in the list nor an alias becomes the unknown word, which
training has seen as well (some words are replaced by it). So a prompt that is not about the procedural world still encodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .procedural import COLOURS, MOTIONS, PATTERNS, TEMPLATES
from .sprites import SHAPES, TEXTURES

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
SPECIAL = (PAD, START, END, UNKNOWN)
MAX_LENGTH = 24


def _caption_words() -> tuple[str, ...]:
    templates = (re.sub(r"{\w+}", " ", template) for template in TEMPLATES)
    text = " ".join((*templates, *COLOURS, *SHAPES, *TEXTURES, *PATTERNS, *MOTIONS))
    return tuple(dict.fromkeys(text.split()))


WORDS = SPECIAL + _caption_words()

ALIASES = {
    "grey": "gray", "violet": "purple", "magenta": "pink", "turquoise": "cyan", "teal": "cyan", "golden": "yellow",
    "gold": "yellow", "crimson": "red", "scarlet": "red", "navy": "blue", "lime": "green", "beige": "brown",
    "disc": "circle", "disk": "circle", "ball": "circle", "round": "circle", "rectangle": "square", "box": "square",
    "rhombus": "diamond", "plus": "cross", "blossom": "flower", "hexagonal": "hexagon", "triangular": "triangle",
    "stripes": "striped", "stripy": "striped", "bars": "barred", "checks": "checkered", "checked": "checkered",
    "chequered": "checkered", "checkerboard": "checkered", "dots": "dotted", "polka": "dotted", "spots": "spotted",
    "rings": "ringed", "solid": "plain", "uniform": "plain", "gradient": "shaded",
    "move": "moves", "moving": "moves", "slides": "moves", "sliding": "moves", "goes": "moves", "going": "moves",
    "flies": "moves", "drifts": "moves", "travels": "moves", "runs": "moves", "rightwards": "right", "rightward": "right",
    "leftwards": "left", "leftward": "left", "upwards": "up", "upward": "up", "rises": "up", "rising": "up",
    "downwards": "down", "downward": "down", "falls": "down", "falling": "down", "grow": "grows", "growing": "grows",
    "expands": "grows", "enlarges": "grows", "shrink": "shrinks", "shrinking": "shrinks", "stay": "stays",
    "staying": "stays", "stands": "stays", "standing": "stays", "backdrop": "background", "wall": "background",
    "ground": "floor", "an": "a", "this": "the", "that": "the", "above": "over", "across": "over",
}  # fmt: skip


class WordTokenizer:
    """Splits text into known words. Has the parts of a transformers tokenizer that ComfyUI's SDTokenizer uses."""

    def __init__(self, words: Sequence[str] = WORDS) -> None:
        """`words`: the vocabulary by id; it starts with the four special ones.

        Raises:
            ValueError: it does not.
        """
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"a vocabulary starts with {SPECIAL}, this one with {tuple(words[: len(SPECIAL)])}")
        self.words = tuple(words)
        self.ids = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def from_pretrained(cls, path: str, words: Sequence[str] = WORDS) -> WordTokenizer:
        """ComfyUI's way to make a tokenizer; the words come from the checkpoint, so `path` is not read."""
        return cls(words)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """`{"input_ids": [start, one id a word, end]}`; punctuation is dropped, capitals do not matter."""
        found = re.findall(r"[a-z]+|[0-9]+", text.lower())
        unknown = self.ids[UNKNOWN]
        ids = [self.ids.get(word, self.ids.get(ALIASES.get(word, ""), unknown)) for word in found]
        return {"input_ids": [self.ids[START], *ids, self.ids[END]]}

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        words = (self.words[number] for number in token_ids)
        return " ".join(word for word in words if not (skip_special_tokens and word in SPECIAL))
