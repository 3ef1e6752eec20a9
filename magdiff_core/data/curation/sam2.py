"""Masks through a clip by SAM 2 (Ravi et al. 2024), in transformers' own implementation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .follow import Start
from .pretrained import Place, load_pretrained


class Sam2:
    """Follows a subject frame by frame; memory does not grow with the clip's length."""

    def __init__(self, folder: Path, place: Place) -> None:
        """Raises as `load_pretrained` does."""
        self.network, self.processor = load_pretrained(folder, "Sam2VideoModel", "Sam2VideoProcessor", place)
        config = self.network.config
        self._reach = max(config.max_object_pointers_in_encoder, config.num_maskmem) + 1

    @torch.inference_mode()
    def masks(self, frames: Iterable[Tensor], start: Start) -> Iterator[Tensor]:
        """A mask bool `[h, w]` for each frame `[h, w, 3]` uint8; of several boxes the union.

        A given mask is kept for the first frame.
        """
        session = self.processor.init_video_session(inference_device=self.network.device, dtype=self.network.dtype)
        for number, frame in enumerate(frames):
            size = tuple(frame.shape[:2])
            if number == 0:
                self._prompt(session, start, size)
            pixels = self.processor.image_processor(frame.numpy(), return_tensors="pt").pixel_values
            out = self.network(session, frame=pixels.to(self.network.device, self.network.dtype), frame_idx=number)
            self._forget(session, number)
            if number == 0 and start.subject_mask is not None:
                yield start.subject_mask
                continue
            (masks,) = self.processor.post_process_masks([out.pred_masks.float()], original_sizes=[size])
            yield masks.flatten(0, 1).any(0).cpu()

    def _prompt(self, session, start: Start, size: tuple[int, int]) -> None:
        add = self.processor.add_inputs_to_inference_session
        if start.subject_mask is not None:
            session.video_height, session.video_width = size
            add(session, frame_idx=0, obj_ids=1, input_masks=start.subject_mask)
            return
        numbers = list(range(1, len(start.boxes) + 1))
        boxes = [[[float(side) for side in box] for box in start.boxes]]
        add(session, frame_idx=0, obj_ids=numbers, input_boxes=boxes, original_size=size)

    def _forget(self, session, number: int) -> None:
        """Lets go of what no later frame looks at: the pixels, and frames beyond the reach of the memory."""
        session.processed_frames.pop(number, None)
        for outputs in session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].pop(number - self._reach, None)
