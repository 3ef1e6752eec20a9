"""A training of an adapter from inside ComfyUI's graph."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..host.loaded_checkpoint import LoadedCheckpoint
from ..host.training_files import training_device
from ..host.training_progress import InterruptProcessingException, TrainingProgress, chosen_precision, training_places
from .adapter_run import AdapterOptions, Watcher, run
from .engine import Engine
from .loss_curve import draw_losses, read_losses


def train_in_graph(
    loaded: LoadedCheckpoint, options: AdapterOptions, file_name: str, precision: str
) -> tuple[str, Tensor, Tensor, str]:
    """Train, or go on where the last run of this `file_name` stopped. `options.folder` and the like are filled in here.

    Returns:
        the adapter's name, loss curve IMAGE, last sample sheet IMAGE `[1, H, W, 3]`, and a text for people.
    """
    target, folder = training_places(file_name)
    device = training_device()
    progress = TrainingProgress()
    losses: list[tuple[int, float]] = []
    sheets: list[Tensor] = []

    def after_step(step: int, loss: float) -> None:
        losses.append((step, loss))
        progress.step(step, options.steps)

    def picture(sheet: Tensor) -> None:
        sheets[:] = [sheet]
        progress.picture(sheet)

    watcher = Watcher(progress.encoded, after_step, picture, (InterruptProcessingException,))
    options = replace(options, folder=folder, resume=True, adapter_file=target, base_name="the MODEL that it was trained on")
    run(options, loaded, Engine(device, chosen_precision(precision, device)), watcher)
    curve = draw_losses(read_losses(folder / "log.jsonl") or losses)
    sheet = sheets[0][None] if sheets else torch.zeros(1, 64, 64, 3)
    skipped = (folder / "skipped.txt").read_text("utf-8").splitlines()
    text = f"{target.name}: {options.steps} steps of {options.batch} clips. State, log and samples: {folder}"
    if skipped:
        text += f"\n{len(skipped)} clips were skipped:\n" + "\n".join(skipped[:20])
    return target.name, curve, sheet, text
