"""A whole training of an adapter: clips encoded, trained in one stage, saved, sampled, written."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.video_clips import Sampling, VideoClip, list_clips, read_clip
from ..host.loaded_checkpoint import LoadedCheckpoint
from ..host.training_base import fingerprint, training_base
from ..host.training_encode import Encoders, token_width
from .adapter_batches import ClipBatch, ClipBatches
from .adapter_cache import ClipCache, load
from .adapter_samples import SampleClip, sample_sheet, save_picture
from .adapter_stage import MAGDIFF, AdapterStage
from .checkpoint import MovingAverage, remove_remains, write_atomically
from .engine import Engine
from .loop import Schedule, train

logger = logging.getLogger("magdiff")

ADAPTER_FILE = "adapter.safetensors"
SAMPLED_CLIPS = 2


@dataclass
class AdapterOptions:
    """What to train and how.

    `data`: folder or CSV of clips. `folder`: for state, log, samples and, unless `adapter_file` names a place, the adapter.
    `cache`: for encoded clips, inside `folder` by default. `batch`: clips a step over all devices, computed in `accumulate` parts.
    `rate`: the paper's is 5e-5. `sample_steps`, `save_steps`: steps between sample pictures and between saves. `half`: the
    adapter is written in float16. `licence`: of the trained weights, for the file. `base_name`: of the base, for the file.
    """

    data: Path
    folder: Path
    steps: int
    stage: str = MAGDIFF
    sampling: Sampling = field(default_factory=Sampling)
    batch: int = 8
    accumulate: int = 1
    rate: float = 5e-5
    seed: int = 0
    checkpoint_layers: bool = False
    save_steps: int = 500
    sample_steps: int = 500
    average_decay: float = 0.999
    half: bool = False
    resume: bool = False
    cache: Path | None = None
    adapter_file: Path | None = None
    base_name: str = ""
    licence: str = ""

    @property
    def path(self) -> Path:
        """Where the adapter is written."""
        return self.adapter_file or self.folder / ADAPTER_FILE


@dataclass
class Watcher:
    """Who wants to know: called with clips encoded so far and their number, after each step, and with each sample picture.

    Any of them may raise one of `interruptions` to stop; a resumed run then goes on as if it had not been stopped.
    """

    encoded: Callable[[int, int], None] = lambda done, total: None
    step: Callable[[int, float], None] = lambda step, loss: None
    picture: Callable[[Tensor], None] = lambda picture: None
    interruptions: tuple[type[BaseException], ...] = ()


def prepare(options: AdapterOptions, encoders: Encoders, engine: Engine, watcher: Watcher) -> tuple[ClipCache, list[VideoClip]]:
    """Encodes the clips, each process its share. What cannot be used is listed in `skipped.txt`."""
    clips, problems = list_clips(options.data, options.sampling.windows)
    cache = ClipCache(options.cache or options.folder / "cache", options.sampling, encoders.fingerprint())
    share = clips[engine.rank :: engine.processes]
    done = 0

    def after_each() -> None:
        nonlocal done
        done += 1
        watcher.encoded(done, len(share))

    cache.fill(share, encoders, after_each)
    engine.wait()
    _, unusable = cache.usable(clips)
    if engine.first:
        skipped = "".join(line + "\n" for line in problems + unusable)
        write_atomically(options.folder / "skipped.txt", lambda path: path.write_text(skipped, "utf-8"))
        for line in problems + unusable:
            logger.warning("skipped %s", line)
    return cache, clips


def run(
    options: AdapterOptions,
    loaded: LoadedCheckpoint,
    engine: Engine | None = None,
    watcher: Watcher | None = None,
    only_prepare: bool = False,
) -> Path:
    """Trains until `options.steps` and writes the adapter at each save; returns its path.

    `loaded`: its model is a base, or one with an adapter to start from; clip_vision may be None for stage "text-to-video".
    `only_prepare`: stop when the clips are encoded.
    Raises ValueError and FileNotFoundError for inputs that do not fit, FloatingPointError when the loss is not finite, OSError when
    a file cannot be written; the state of the last save is there then.
    """
    engine, watcher = engine or Engine(), watcher or Watcher()
    _check(options, loaded, engine)
    with torch.inference_mode(False), torch.enable_grad():
        base = training_base(loaded.model)
        base_id = fingerprint(base.unet)
        needs_picture = options.stage == MAGDIFF
        stage = AdapterStage(
            base, options.stage, engine, options.sampling.frames, token_width(loaded.clip_vision) if needs_picture else None,
            options.base_name, options.checkpoint_layers, options.seed, options.licence,
        )  # fmt: skip
        encoders = Encoders(stage.training.patcher, loaded.clip, loaded.vae, loaded.clip_vision, needs_picture)
        cache, clips = prepare(options, encoders, engine, watcher)
        if only_prepare:
            return cache.folder
        encoders.free()
        return _train(options, stage, cache, clips, encoders, engine, watcher, base_id)


def _check(options: AdapterOptions, loaded: LoadedCheckpoint, engine: Engine) -> None:
    needed = ["model", "clip", "vae"] + (["clip_vision"] if options.stage == MAGDIFF else [])
    missing = [name for name in needed if getattr(loaded, name) is None]
    if missing:
        raise ValueError(f"stage {options.stage} needs {' and '.join(missing)}, which the files that were given do not hold")
    parts = options.accumulate * engine.processes
    if options.batch % parts:
        raise ValueError(
            f"a batch of {options.batch} cannot be cut into {options.accumulate} parts for {engine.processes} devices: choose a "
            f"multiple of {parts}"
        )
    state = options.folder / "state.pt"
    if state.is_file() and not options.resume:
        raise ValueError(f"{options.folder} holds a training already: resume it (--resume), or name another folder")


def _train(
    options: AdapterOptions,
    stage: AdapterStage,
    cache: ClipCache,
    clips: list[VideoClip],
    encoders: Encoders,
    engine: Engine,
    watcher: Watcher,
    base_id: str,
) -> Path:
    device = engine.device
    if engine.first:
        remove_remains(options.path)
    files, _ = cache.usable(clips)
    common = load(cache.common_file())
    batches = ClipBatches(files, common["text"], options.batch // options.accumulate, options.seed, engine.rank, engine.processes)
    common = {name: value.to(device) for name, value in common.items()}
    usable = [clip for clip in clips if cache.file_of(clip) in set(files)][:SAMPLED_CLIPS]
    parameters = stage.parameters()
    what = {
        "stage": options.stage, "batch": options.batch, "parts": options.accumulate, "seed": options.seed, "base": base_id,
        "clips": hashlib.sha256("".join(file.name for file in files).encode()).hexdigest()[:16],
    }  # fmt: skip

    def loss_of(generator: torch.Generator) -> Tensor:
        return engine.run(_to(batches.next(generator), device), common)

    def extra_state() -> dict:
        return {"drawn": batches.drawn, **what}

    def set_extra_state(state: dict) -> None:
        other = [name for name, value in what.items() if state.get(name) != value]
        if other:
            raise ValueError(
                f"{options.folder} holds a training with another {' and another '.join(other)}: use the same settings and clips to "
                "resume it, or name another folder"
            )
        batches.drawn = state["drawn"]

    def on_save(average: MovingAverage, step: int) -> None:
        values = engine.whole(average.values)
        if engine.first:
            words = f"{options.stage}, {step} steps of {options.batch}, {len(files)} clips of {options.data.name}"
            started = stage.config.trained_from
            dtype = torch.float16 if options.half else torch.float32
            stage.write(options.path, values, f"{started}; then {words}" if started else words, dtype)
            logger.info("wrote %s of step %d", options.path, step)

    def after_step(average: MovingAverage, step: int, loss: float) -> None:
        watcher.step(step, loss)
        if step % options.sample_steps == 0 or step == options.steps:
            rows = [_row(clip, cache, stage) for clip in usable]
            # every process takes part: with sharded weights none could do it alone
            sheet = sample_sheet(stage, engine, average, encoders, rows, common)
            if engine.first:
                save_picture(options.folder / "samples" / f"step_{step:07d}.png", sheet)
                watcher.picture(sheet)

    schedule = Schedule(
        options.rate, options.steps, decay_from=1.0, average_decay=options.average_decay, save_steps=options.save_steps,
        log_every=10,
    )  # fmt: skip
    train(
        parameters, loss_of, schedule, options.folder, options.seed, options.resume, on_save, extra_state, set_extra_state,
        engine, options.accumulate, after_step, watcher.interruptions,
    )  # fmt: skip
    return options.path


def _row(clip: VideoClip, cache: ClipCache, stage: AdapterStage) -> SampleClip:
    subject = read_clip(clip, cache.sampling)[1] if stage.stage == MAGDIFF else None
    return SampleClip(load(cache.file_of(clip)), subject)


def _to(batch: ClipBatch, device: torch.device) -> ClipBatch:
    values = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return ClipBatch(**values, subjects={name: value.to(device) for name, value in batch.subjects.items()})
