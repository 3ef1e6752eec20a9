"""Boxes of what a label names, by an open-vocabulary detector of transformers (Grounding DINO, as in SAM-Track)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...segment.prompts import Box
from .pretrained import Place, load_pretrained, to_place

MOST_BOXES = 8


class Grounding:
    """Finds a label in a picture."""

    def __init__(self, folder: Path, place: Place, least_score: float = 0.35) -> None:
        """Raises as `load_pretrained` does. `least_score`: boxes with less are not used, 0..1."""
        names = ("GroundingDinoForObjectDetection", "GroundingDinoProcessor")
        self.network, self.processor = load_pretrained(folder, *names, place)
        self.least_score = least_score

    @torch.inference_mode()
    def boxes(self, picture: Tensor, label: str) -> tuple[Box, ...]:
        """Boxes (x0, y0, x1, y1) in pixels of a picture `[H, W, 3]` uint8, the surest first, at most 8."""
        # The model was trained on small letters with a full stop after each phrase.
        inputs = to_place(self.processor(images=picture.numpy(), text=f"{label.lower()}.", return_tensors="pt"), self.network)
        out = self.network(**inputs)
        height, width = picture.shape[:2]
        (found,) = self.processor.post_process_grounded_object_detection(
            out, inputs["input_ids"], threshold=self.least_score, text_threshold=self.least_score, target_sizes=[(height, width)]
        )
        order = found["scores"].float().argsort(descending=True)[:MOST_BOXES]
        limits = torch.tensor([width, height, width, height])
        boxes = found["boxes"].float().cpu()[order.cpu()].clamp(min=0).minimum(limits)
        kept = [tuple(box) for box in boxes.tolist() if box[2] - box[0] >= 1 and box[3] - box[1] >= 1]
        return tuple(kept)
