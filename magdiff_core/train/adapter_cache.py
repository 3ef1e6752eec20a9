"""Encoded clips on disk: every clip is encoded once, then autoencoder and encoders may leave the memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.video_clips import Sampling, VideoClip, read_clip
from ..data.video_frames import BadVideo
from ..host.training_encode import Encoders
from .checkpoint import write_atomically

logger = logging.getLogger("magdiff")

HALF = ("hidden", "text")
"""Kept in float16: the encoders of text and picture give no more than that."""


class ClipCache:
    """A folder with a file for each clip, named by all that its contents depend on, and a line for each that cannot be used."""

    def __init__(self, folder: Path, sampling: Sampling, encoder_id: str) -> None:
        self.folder = folder
        self.sampling = sampling
        self.encoder_id = encoder_id
        folder.mkdir(parents=True, exist_ok=True)

    def file_of(self, clip: VideoClip) -> Path:
        """Where the clip is kept. Raises FileNotFoundError when its video or mask is gone."""
        facts = [self.encoder_id, asdict(self.sampling), clip.caption, clip.window]
        for file in (clip.video, clip.subject_mask):
            if file is not None:
                status = file.stat()
                facts.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
        return self.folder / f"{_digest(facts)}.safetensors"

    def common_file(self) -> Path:
        return self.folder / f"common-{_digest([self.encoder_id, self.sampling.size])}.safetensors"

    def fill(self, clips: Sequence[VideoClip], encoders: Encoders, after_each: Callable[[], None] = lambda: None) -> None:
        """Encodes what is missing; a clip that cannot be read leaves a file that says why. Raises OSError when the disk is full."""
        if not self.common_file().is_file():
            _save(self.common_file(), encoders.common(self.sampling.size))
        for clip in clips:
            file = self.file_of(clip)
            if not file.is_file() and not _reason_file(file).is_file():
                try:
                    frames, subject = read_clip(clip, self.sampling)
                except BadVideo as problem:
                    text = str(problem)
                    write_atomically(_reason_file(file), lambda path, text=text: path.write_text(text, "utf-8"))
                else:
                    tensors = {"latents": encoders.latents(frames), "text": encoders.text(clip.caption)}
                    _save(file, tensors | encoders.subject(subject))
            after_each()

    def usable(self, clips: Sequence[VideoClip]) -> tuple[list[Path], list[str]]:
        """Files of the clips that `fill` could encode, and why the others could not be.

        Raises ValueError when none is left.
        """
        files, problems = [], []
        for clip in clips:
            file = self.file_of(clip)
            if file.is_file():
                files.append(file)
            else:
                reason = _reason_file(file)
                why = reason.read_text("utf-8") if reason.is_file() else "was not encoded"
                problems.append(why if why.startswith(clip.video.name) else f"{clip.name}: {why}")
        if not files:
            raise ValueError(f"none of {len(clips)} clips can be used: {'; '.join(problems[:3])}")
        return files, problems


def load(file: Path) -> dict[str, Tensor]:
    """Tensors of one cached clip, float32. Raises FileNotFoundError or ValueError naming the file and the way out."""
    again = "start again with --resume, which encodes it anew"
    if not file.is_file():
        raise FileNotFoundError(f"the encoded clip {file} is gone: {again}")
    try:
        tensors = load_file(file)
    except Exception as error:
        raise ValueError(f"the encoded clip {file} is damaged ({error}): delete it and {again}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _digest(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _reason_file(file: Path) -> Path:
    return file.with_suffix(".unusable.txt")


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    kept = {name: (value.half() if name in HALF else value).contiguous() for name, value in tensors.items()}
    bad = [name for name, value in kept.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"the encoders gave NaN or infinity for {', '.join(bad)}: run ComfyUI's encoders in another precision")
    write_atomically(file, lambda temporary: save_file(kept, temporary))
