"""Nouns and word similarity by spaCy."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

TAGGERS = {"tagger", "morphologizer", "attribute_ruler"}


class Words:
    """A spaCy pipeline that knows parts of speech and word vectors."""

    def __init__(self, folder: Path) -> None:
        """Raises ImportError without spaCy, FileNotFoundError or ValueError when the folder holds no pipeline that will do."""
        try:
            import spacy
        except ImportError as error:
            raise ImportError("nouns and word similarity need spaCy: pip install spacy") from error
        if not (folder / "config.cfg").is_file():
            raise FileNotFoundError(
                f"there is no config.cfg in {folder}: name the folder of a spaCy pipeline, for example en_core_web_md-3.8.0 "
                "inside the package en_core_web_md"
            )
        self._pipeline = spacy.load(folder)
        if not TAGGERS & set(self._pipeline.pipe_names):
            raise ValueError(f"{folder.name} tells no parts of speech: use a pipeline with a tagger, for example en_core_web_md")
        if not self._pipeline.vocab.vectors_length:
            raise ValueError(f"{folder.name} has no word vectors: use en_core_web_md or en_core_web_lg, not the small one")
        self._vector = lru_cache(maxsize=100_000)(self._look_up)

    def nouns(self, text: str) -> list[str]:
        """Nouns and names in a text, small letters, each once, in their order."""
        found = [token.lower_ for token in self._pipeline(text) if token.pos_ in ("NOUN", "PROPN")]
        return list(dict.fromkeys(found))

    def known(self, text: str) -> bool:
        """Whether a word of the text has a vector."""
        return bool(self._vector(text).any())

    def similarity(self, one: str, other: str) -> float:
        """Cosine of the mean word vectors, as spaCy has it; 0 when a word is unknown."""
        first, second = self._vector(one), self._vector(other)
        lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(first @ second) / lengths if lengths else 0.0

    def _look_up(self, text: str) -> np.ndarray:
        return np.asarray(self._pipeline.make_doc(text).vector, np.float64)


def tidy_answer(answer: str) -> str:
    """An answer without its first article and its punctuation, in small letters: "A brown dog." is "brown dog"."""
    words = re.sub(r"[^\w\s'-]", " ", answer.lower()).split()
    while words and words[0] in ("a", "an", "the", "it", "is", "it's", "there", "are"):
        words.pop(0)
    return " ".join(words)
