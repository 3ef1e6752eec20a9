"""Make the clips of a table with the pack's own nodes, one at a time; what is made already is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.pack_nodes import call_node
from magdiff_core.host import session

from .cases import FRAMES, Case, DataError, source_frames, subject_mask


@dataclass(frozen=True)
class Settings:
    """How clips are made; the defaults are the paper's (DDIM, guidance 7.5, 256 x 256, 8 frames)."""

    checkpoint: str
    adapter: str | None
    clip_vision: str | None
    size: int = 256
    frames: int = FRAMES
    steps: int = 50
    cfg: float = 7.5
    seed: int = 0


class Maker:
    """Models and nodes that make a clip.

    Args:
        settings: names of files as the loaders list them.
        base: ComfyUI's base directory, where `models` is; its own folder by default.
    """

    def __init__(self, settings: Settings, base: Path | None = None) -> None:
        self.settings = settings
        session.start(base)
        self.pack = session.load_pack()
        import comfy.utils
        import nodes

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.core = nodes.NODE_CLASS_MAPPINGS
        with torch.inference_mode():
            self.model, self.clip, self.vae, self.clip_vision = self._ours("MagDiffLoadCheckpoint", checkpoint=settings.checkpoint)
            if settings.adapter:
                self.model = self._ours("MagDiffApplyAdapter", model=self.model, adapter=settings.adapter)[0]
            if settings.clip_vision:
                self.clip_vision = self.core["CLIPVisionLoader"]().load_clip(settings.clip_vision)[0]
            if not hasattr(self.clip_vision, "encode_image"):
                raise DataError(f"{settings.checkpoint} holds no image encoder: name one with --clip-vision")
            self.negative = self._text("")

    def _ours(self, node: str, **inputs: object) -> tuple:
        return call_node(self.pack, node, **inputs)

    def _text(self, prompt: str) -> list:
        return self.core["CLIPTextEncode"]().encode(self.clip, prompt)[0]

    def make(self, case: Case, seed: int) -> Tensor:
        """A clip `[F, size, size, 3]` in 0..1."""
        settings = self.settings
        given, mask = source_frames(case, settings.size), subject_mask(case, settings.size)
        subject = given if mask is None else given * mask[..., None]
        with torch.inference_mode():
            positive, negative, latent = self._ours(
                "MagDiffHFAPyramidEncode", positive=self._text(case.prompt), negative=self.negative, vae=self.vae,
                subject=subject, mode=case.mode, width=settings.size, height=settings.size, frames=settings.frames,
            )  # fmt: skip
            tokens = self._ours("MagDiffEncodeSubjectTokens", model=self.model, clip_vision=self.clip_vision, subject=subject)[0]
            positive, negative = self._ours(
                "MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=tokens
            )
            sampled = self._ours(
                "MagDiffSampler", model=self.model, positive=positive, negative=negative, latent_image=latent, seed=seed,
                steps=settings.steps, cfg=settings.cfg,
            )[0]  # fmt: skip
            return self.core["VAEDecode"]().decode(self.vae, sampled)[0].cpu()


def remember_settings(settings: Mapping, folder: Path) -> None:
    """Writes settings.json, or checks that the clips in the folder were made with the same. Raises DataError when not."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if not file.is_file():
        file.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        return
    before = json.loads(file.read_text("utf-8"))
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise DataError(
            f"{folder} holds clips that were made with {changed[0]} = {before.get(changed[0])}, now it is {settings[changed[0]]}: "
            "name another folder with --out"
        )


def write_clip(frames: Tensor, folder: Path) -> None:
    """Frames as PNG files; the folder appears only when all of them are written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        for number, frame in enumerate((frames.clamp(0, 1) * 255).round().to(torch.uint8).numpy()):
            Image.fromarray(frame).save(waiting / f"{number:04}.png")
        waiting.rename(folder)
    except BaseException:
        shutil.rmtree(waiting, ignore_errors=True)
        raise


def make_all(cases: list[Case], settings: Settings, folder: Path, base: Path | None, progress) -> None:
    """Makes the clips that the folder lacks, each with a seed of its own. `progress`: (done, total, name) after each."""
    remember_settings(asdict(settings), folder)
    maker = None
    for number, case in enumerate(cases):
        target = folder / "made" / case.name
        if not target.is_dir():
            maker = maker or Maker(settings, base)
            write_clip(maker.make(case, settings.seed + number), target)
        progress(number + 1, len(cases), case.name)
