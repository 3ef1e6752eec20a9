"""The part that both stages share: schedule, clipping, averaging, logging, saving and resuming."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import MovingAverage, load_state, save_state

logger = logging.getLogger("magdiff")


@dataclass
class Schedule:
    """How long and how fast to learn. The end is `steps`, or `seconds` of work summed over all resumed runs."""

    rate: float
    steps: int | None = None
    seconds: float | None = None
    warm_up: int = 100
    decay_from: float = 2 / 3
    average_decay: float = 0.998
    weight_decay: float = 0.01
    save_every: float = 300.0

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end."""
        done = [step / self.steps] if self.steps else []
        return max(done + ([elapsed / self.seconds] if self.seconds else []))

    def rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, constant, then linear to 1 % of the rate over the last part."""
        fall = min(1.0, max(0.01, (1 - progress) / (1 - self.decay_from)))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * fall


def train(
    parameters: dict[str, torch.nn.Parameter],
    loss_of: Callable[[torch.Generator], torch.Tensor],
    schedule: Schedule,
    folder: Path,
    seed: int = 0,
    resume: bool = False,
    on_save: Callable[[MovingAverage, int], None] | None = None,
    extra_state: Callable[[], dict] | None = None,
    set_extra_state: Callable[[dict], None] | None = None,
) -> MovingAverage:
    """Runs optimiser steps until the schedule ends.

    Args:
        parameters: what is trained, by name.
        loss_of: draws a batch with the generator that it is given (the only source of randomness) and returns its loss.
        folder: receives `state.pt` (resumable) and `log.jsonl`.
        resume: go on from `state.pt` where there is one.
        on_save: called with the averaged weights and the step after each save.
        extra_state, set_extra_state: further state of `loss_of` that a resumed run needs.

    Returns:
        The averaged weights.

    Raises:
        ValueError: the schedule has no end.
        FloatingPointError: the loss is not finite.
    """
    if not schedule.steps and not schedule.seconds:
        raise ValueError("the schedule has no end: give --steps or --seconds")
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.pt"
    matrices = [value for value in parameters.values() if value.ndim > 1]
    vectors = [value for value in parameters.values() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.rate, betas=(0.9, 0.99),
    )  # fmt: skip
    average = MovingAverage(parameters, schedule.average_decay)
    generator = torch.Generator().manual_seed(seed)
    step, elapsed, smooth = 0, 0.0, None
    if resume and state_file.is_file():
        state = load_state(state_file)
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        generator.set_state(state["generator"])
        step, elapsed, smooth = state["step"], state["elapsed"], state["smooth"]
        if set_extra_state:
            set_extra_state(state["extra"])
        logger.info("resumed at step %d", step)

    def save() -> None:
        save_state(state_file, {
            "parameters": {name: value.detach() for name, value in parameters.items()},
            "optimizer": optimizer.state_dict(), "average": average.state_dict(), "generator": generator.get_state(),
            "step": step, "elapsed": elapsed, "smooth": smooth, "extra": extra_state() if extra_state else {},
        })  # fmt: skip
        if on_save:
            on_save(average, step)

    last_save = elapsed
    while (progress := schedule.progress(step, elapsed)) < 1:
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step, progress)
        loss = loss_of(generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss.detach())} at step {step}: resume with a lower rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        average.update(parameters)
        value = float(loss.detach())
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        step += 1
        elapsed += time.monotonic() - began
        if step % 50 == 0:
            line = {"step": step, "elapsed": round(elapsed, 1), "loss": round(smooth, 5),
                    "rate": schedule.rate_at(step, progress)}  # fmt: skip
            logger.info("step %(step)d  %(elapsed).0f s  loss %(loss).4f  rate %(rate).1e", line)
            with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if elapsed - last_save >= schedule.save_every:
            last_save = elapsed
            save()
    save()
    return average
