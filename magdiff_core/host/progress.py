"""Progress bar and interruption for loops over frames."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def frame_counter(total: int) -> Callable[[], None]:
    """A function to call after each of `total` frames: moves the node's progress bar and stops when the user said so.

    Raises (when called): comfy's InterruptProcessingException after a press on Cancel.
    """
    bar = comfy.utils.ProgressBar(total)

    def each_frame() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return each_frame
