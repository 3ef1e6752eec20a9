"""Captions and answers by BLIP-2 (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .pretrained import Place, load_pretrained, to_place

QUESTION = "Question: What is the foreground in the picture? Answer:"
"""MagDiff supplement C, in the form that BLIP-2's authors ask questions in."""

CAPTION = "a photo of"
"""What BLIP-2's authors let captions begin with (their section 4.2); it is not part of the caption."""


class Blip2:
    """Says in words what pictures show."""

    def __init__(self, folder: Path, place: Place) -> None:
        """Raises as `load_pretrained` does."""
        self.network, self.processor = load_pretrained(folder, "Blip2ForConditionalGeneration", "Blip2Processor", place)

    @torch.inference_mode()
    def complete(self, pictures: Sequence[Tensor], prompt: str, most_words: int = 30) -> list[str]:
        """What the model writes after the prompt, for each picture `[H, W, 3]` uint8 (of any sizes).

        Args:
            most_words: tokens at most.
        """
        images = [picture.numpy() for picture in pictures]
        inputs = to_place(self.processor(images=images, text=[prompt] * len(images), return_tensors="pt"), self.network)
        written = self.network.generate(**inputs, do_sample=False, max_new_tokens=most_words)
        given = inputs["input_ids"]
        # Decoders (OPT) give the prompt back, encoder-decoders (Flan-T5) do not.
        if written.shape[1] >= given.shape[1] and torch.equal(written[:, : given.shape[1]], given):
            written = written[:, given.shape[1] :]
        return [" ".join(text.split()) for text in self.processor.batch_decode(written, skip_special_tokens=True)]

    def captions(self, pictures: Sequence[Tensor]) -> list[str]:
        return self.complete(pictures, CAPTION)

    def answers(self, pictures: Sequence[Tensor]) -> list[str]:
        """What is in the foreground."""
        return self.complete(pictures, QUESTION)
