"""The part that all stages share: schedule, clipping, averaging, logging, saving and resuming."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import MovingAverage, disk_errors_named, load_state, remove_remains, save_state
from .engine import Engine
from .optimizer import MuonAndAdamW, adamw

logger = logging.getLogger("magdiff")


@dataclass
class Schedule:
    """How long and how fast to learn. The end is `steps`, or `seconds` of work summed over all resumed runs.

    `decay_from`: share of the run after which the rate falls; 1 = it stays. `save_steps`: steps between saves, instead of
    `save_every` seconds.
    """

    rate: float
    steps: int | None = None
    seconds: float | None = None
    warm_up: int = 100
    decay_from: float = 2 / 3
    average_decay: float = 0.998
    weight_decay: float = 0.01
    save_every: float = 300.0
    save_steps: int | None = None
    log_every: int = 50

    def progress(self, step: int, elapsed: float) -> float:
        """0 at the start, 1 at the end."""
        done = [step / self.steps] if self.steps else []
        return max(done + ([elapsed / self.seconds] if self.seconds else []))

    def rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, constant, then linear to 1 % of the rate over the last part."""
        fall = min(1.0, max(0.01, (1 - progress) / (1 - self.decay_from))) if self.decay_from < 1 else 1.0
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
    engine: Engine | None = None,
    accumulate: int = 1,
    after_step: Callable[[MovingAverage, int, float], None] | None = None,
    interruptions: tuple[type[BaseException], ...] = (),
    make_optimizer: Callable[[dict[str, torch.nn.Parameter], float, float], torch.optim.Optimizer | MuonAndAdamW] = adamw,
) -> MovingAverage:
    """Runs optimiser steps until the schedule ends.

    Args:
        parameters: what is trained, by name.
        loss_of: draws a batch with the generator that it is given (the only source of randomness) and returns its loss.
            Called `accumulate` times a step.
        folder: receives `state.pt` (resumable) and `log.jsonl`.
        resume: go on from `state.pt` where there is one.
        on_save: called with the averaged weights and the step after each save.
        extra_state, set_extra_state: further state of `loss_of` that a resumed run needs.
        engine: where and in which precision to compute; one process by default. With several, each calls this function, and
            the first one writes.
        after_step: called with averaged weights, number of steps and loss after each.
        interruptions: exceptions by which `loss_of` or `after_step` say that the user wants to stop; the state is saved, and a
            resumed run goes on as if it had never been stopped.
        make_optimizer: of parameters, rate and weight decay. `MuonAndAdamW` knows one process only.

    Returns:
        The averaged weights.

    Raises:
        ValueError: the schedule has no end.
        FloatingPointError: loss or gradients are not finite.
        OSError: a file cannot be written.
    """
    if not schedule.steps and not schedule.seconds:
        raise ValueError("the schedule has no end: give --steps or --seconds")
    engine = engine or Engine()
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.pt"
    if engine.first:
        remove_remains(state_file)
    optimizer = make_optimizer(parameters, schedule.rate, schedule.weight_decay)
    optimizer, parameters = engine.prepare(optimizer, parameters)
    average = MovingAverage(parameters, schedule.average_decay)
    generator = torch.Generator().manual_seed(seed)
    step, elapsed, smooth = 0, 0.0, None
    saved = written = None  # step of the state in the folder; the same, when this call wrote it
    if resume and state_file.is_file():
        state = load_state(state_file)
        if set_extra_state:
            set_extra_state(state["extra"])
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(engine.spread(state["parameters"][name], value))
        engine.load_optimizer(optimizer, state["optimizer"])
        average.updates = state["average"]["updates"]
        for name, value in average.values.items():
            value.copy_(engine.spread(state["average"]["values"][name], value))
        engine.load_state_dict(state.get("engine", {}))
        generator.set_state(state["generator"])
        step, elapsed, smooth = state["step"], state["elapsed"], state["smooth"]
        saved = step
        logger.info("resumed at step %d", step)

    def position() -> tuple[torch.Tensor, dict]:
        """What the batches of the coming step depend on."""
        return generator.get_state(), extra_state() if extra_state else {}

    def save(drawn_from: tuple[torch.Tensor, dict]) -> None:
        nonlocal saved, written
        state = {
            "parameters": engine.whole({name: value.detach() for name, value in parameters.items()}),
            "optimizer": engine.whole(optimizer.state_dict()), "average": engine.whole(average.state_dict()),
            "generator": drawn_from[0], "step": step, "elapsed": elapsed, "smooth": smooth, "extra": drawn_from[1],
            "engine": engine.state_dict(),
        }  # fmt: skip
        if engine.first:
            save_state(state_file, state)
        saved = written = step
        if on_save:
            on_save(average, step)

    def check_finite(value: torch.Tensor, what: str) -> None:
        if not torch.isfinite(value):
            kept = f"{state_file} holds the weights of step {saved}" if saved is not None else "nothing was saved yet"
            raise FloatingPointError(f"the {what} is {float(value)} at step {step}: resume with a lower rate; {kept}")

    last_save = elapsed
    while (progress := schedule.progress(step, elapsed)) < 1:
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step, progress)
        drawn_from = position()
        optimizer.zero_grad(set_to_none=True)
        value = 0.0
        try:
            for part in range(accumulate):
                loss = loss_of(generator)
                mean = engine.mean(loss.detach())
                check_finite(mean, "loss")
                engine.backward(loss / accumulate, last=part == accumulate - 1)
                value += float(mean) / accumulate
        except interruptions:
            optimizer.zero_grad(set_to_none=True)
            save(drawn_from)
            raise
        norm = engine.clip(optimizer, parameters, 1.0)
        if not engine.scales_loss:
            check_finite(norm, "norm of the gradients")
        engine.step(optimizer)
        average.update(parameters)
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        step += 1
        elapsed += time.monotonic() - began
        if step % schedule.log_every == 0 and engine.first:
            line = {"step": step, "elapsed": round(elapsed, 1), "loss": round(smooth, 5),
                    "rate": schedule.rate_at(step, progress)}  # fmt: skip
            logger.info("step %(step)d  %(elapsed).0f s  loss %(loss).4f  rate %(rate).1e", line)
            file = folder / "log.jsonl"
            with disk_errors_named(file), open(file, "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        due = step % schedule.save_steps == 0 if schedule.save_steps else elapsed - last_save >= schedule.save_every
        if due:
            last_save = elapsed
            save(position())
        if after_step:
            try:
                after_step(average, step, value)
            except interruptions:
                if written != step:
                    save(position())
                raise
    if written != step:
        save(position())
    return average
