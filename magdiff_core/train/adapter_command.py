"""`python -m magdiff_core.train adapter`: trains an adapter for a base on clips of one's own; docs/training.md is the guide."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from pathlib import Path

from .engine import PRECISIONS, AccelerateEngine, Engine

logger = logging.getLogger("magdiff")

STAGES = ("text-to-video", "magdiff")


class Stopped(Exception):
    """The user or the system asked to stop; the state was saved."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--stage", choices=STAGES, default="magdiff", help="what learns: the layers along time, or all that MagDiff adds")
    add("--base", type=Path, required=True, help="checkpoint to train on: Stable Diffusion 2.1, 1.5, the small model, MagDiff.pth")
    add("--adapter", type=Path, help="adapter to start from, for example of the stage before")
    add("--clip-vision", type=Path, help="image encoder, where the checkpoint holds none")
    add("--data", type=Path, required=True, help="folder of videos with .txt captions and .mask.png masks, or a CSV")
    add("--out", type=Path, required=True, help="folder for state, log, samples and adapter.safetensors")
    add("--cache", type=Path, help="folder for encoded clips, OUT/cache by default; runs may share it")
    add("--steps", type=int, required=True)
    add("--batch", type=int, default=8, help="clips a step, over all devices")
    add("--accumulate", type=int, default=1, help="parts in which a step's clips are computed, to save memory")
    add("--rate", type=float, default=5e-5, help="learning rate")
    add("--frames", type=int, default=8, help="frames of a clip")
    add("--size", type=int, default=256, help="pixels of a side")
    add("--frame-rate", type=float, default=8.0, help="frames that are taken of a second")
    add("--windows", type=int, default=1, help="clips that are taken of each video")
    add("--precision", choices=sorted(PRECISIONS), default="no", help="mixed precision (accelerate launch has an option for it)")
    add("--checkpoint-layers", action="store_true", help="gradient checkpointing: less memory, a third slower")
    add("--save-steps", type=int, default=500, help="steps between saves")
    add("--sample-steps", type=int, default=500, help="steps between sample pictures")
    add("--half", action="store_true", help="write the adapter in float16")
    add("--licence", default="", help="of the trained weights, for the file")
    add("--seed", type=int, default=0)
    add("--prepare", action="store_true", help="encode the clips and stop")
    add("--resume", action="store_true", help="go on from the state in --out")


def run(arguments: argparse.Namespace) -> None:
    """Trains as the command line says; what stops it is said in words, with exit status 1."""
    # Started by accelerate, this process must take its device before ComfyUI looks for one.
    launched = {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys()
    engine = AccelerateEngine() if launched else None
    from ..data.video_clips import Sampling
    from ..host.training_files import load_for_training, training_device
    from .adapter_run import AdapterOptions, Watcher
    from .adapter_run import run as train

    asked_to_stop = []

    def stop(number: int, frame: object) -> None:
        asked_to_stop.append(number)

    def stop_if_asked(*_) -> None:
        if asked_to_stop:
            raise Stopped

    def encoded(done: int, total: int) -> None:
        stop_if_asked()
        if done % 50 == 0 or done == total:
            logger.info("%d of %d clips are encoded", done, total)

    handlers = {}
    if engine is None:
        engine = Engine(training_device(), arguments.precision)
        # Several processes would not stop after the same step: they go on from the last save instead.
        handlers = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    sampling = Sampling(arguments.frames, arguments.size, arguments.frame_rate, arguments.windows, arguments.seed)
    shared = {name: getattr(arguments, name) for name in (
        "data", "steps", "stage", "batch", "accumulate", "rate", "seed", "checkpoint_layers", "save_steps", "sample_steps", "half",
        "resume", "cache", "licence",
    )}  # fmt: skip
    options = AdapterOptions(folder=arguments.out, sampling=sampling, base_name=arguments.base.stem, **shared)
    try:
        loaded = load_for_training(arguments.base, arguments.adapter, arguments.clip_vision)
        written = train(options, loaded, engine, Watcher(encoded, stop_if_asked, interruptions=(Stopped,)), arguments.prepare)
    except Stopped:
        raise SystemExit(f"stopped; --resume goes on from what is in {arguments.out}") from None
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    if engine.first:
        logger.info("%s is there", written)
