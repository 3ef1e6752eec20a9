"""The nodes of the example workflows, called in this process the way ComfyUI calls them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, autocast

from benchmarks.pack_nodes import call_node
from magdiff_core.alignment.apa import ADAPTIVE
from magdiff_core.host import session

CHECKPOINT = "magdiff-mini.safetensors"
ADAPTER = "magdiff-mini-adapter.safetensors"
GENERATE, EDIT = "generate", "edit"


class MissingModel(Exception):
    """A file of the small model is not there; the text says where it belongs."""


def check_models(folder: Path) -> None:
    """Raises MissingModel naming the files of the small model that `folder` lacks."""
    missing = [name for name in (CHECKPOINT, ADAPTER) if not (folder / name).is_file()]
    if missing:
        raise MissingModel(
            f"{' and '.join(missing)} not found in {folder}: they come with the repository "
            "(git checkout -- models), or make them with: python dev.py run -m magdiff_core.train"
        )


class Pipeline:
    """Checkpoint, adapter and the nodes that make a clip with them.

    Every method runs under inference mode, one clip at a time, as a user's prompt does.

    Args:
        models: folder with the two files of the small model; the pack's own by default.
        bfloat16: matrix products and convolutions of `make` in that type (autocast). On processors with bfloat16
            instructions a clip takes about half the time; its pixels move by 0.001 of their range on average.

    Raises:
        MissingModel: one of the files is not there.
    """

    def __init__(self, models: Path | None = None, bfloat16: bool = False) -> None:
        check_models(models or session.PACK_FOLDER / "models")
        self.bfloat16 = bfloat16
        # Previews go into a base directory of our own; the models are found in the pack.
        self.base = tempfile.TemporaryDirectory(prefix="magdiff-mini-", ignore_cleanup_errors=True)
        session.start(self.base.name)
        self.pack = session.load_pack()
        import comfy.utils
        import folder_paths
        import nodes

        if models:
            folder_paths.add_model_folder_path("magdiff", str(models.resolve()), is_default=True)
        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.core = nodes.NODE_CLASS_MAPPINGS
        with torch.inference_mode():
            self.base_model, self.clip, self.vae, self.clip_vision = self._ours("MagDiffLoadCheckpoint", checkpoint=CHECKPOINT)
            self.negative = self._text("")

    def _ours(self, node: str, **inputs: object) -> tuple:
        return call_node(self.pack, node, **inputs)

    def _text(self, prompt: str) -> list:
        return self.core["CLIPTextEncode"]().encode(self.clip, prompt)[0]

    def autoencode(self, frames: Tensor) -> Tensor:
        """`[F, h, w, 3]` through VAE Encode and VAE Decode."""
        with torch.inference_mode():
            latent = self.core["VAEEncode"]().encode(self.vae, frames)[0]
            return self.core["VAEDecode"]().decode(self.vae, latent)[0].cpu()

    def make(
        self,
        prompt: str,
        pictures: Tensor,
        subject_mask: Tensor | None,
        frames: int,
        mode: str = GENERATE,
        seed: int = 0,
        steps: int = 25,
        cfg: float = 1.0,
        alpha_text: float = 1.0,
        alpha_image: float = 1.0,
        alpha_mode: str = ADAPTIVE,
        pyramid_strength: float = 1.0,
    ) -> Tensor:
        """A clip `[frames, h, w, 3]` in 0..1.

        Args:
            pictures: the reference picture `[1, h, w, 3]` (generate) or all frames of a clip (edit), in 0..1.
            subject_mask: `[1 or frames, h, w]`, 1 = subject. None: nothing is cut out, the whole picture is the subject.
            alpha_text, alpha_image, alpha_mode: inputs of APA Conditioning.
            pyramid_strength: strength in Apply MagDiff Adapter.
        """
        height, width = pictures.shape[1:3]
        with torch.inference_mode(), autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            model = self._ours("MagDiffApplyAdapter", model=self.base_model, adapter=ADAPTER, pyramid_strength=pyramid_strength)[0]
            subject = pictures
            if subject_mask is not None:
                subject = self._ours("MagDiffSubjectSegment", images=pictures, sam_model="none", subject_mask=subject_mask)[0]
            positive, negative, latent = self._ours(
                "MagDiffHFAPyramidEncode", positive=self._text(prompt), negative=self.negative, vae=self.vae, subject=subject,
                mode=mode, width=width, height=height, frames=frames,
            )  # fmt: skip
            tokens = self._ours("MagDiffEncodeSubjectTokens", model=model, clip_vision=self.clip_vision, subject=subject)[0]
            positive, negative = self._ours(
                "MagDiffAPAConditioning", positive=positive, negative=negative, clip_vision_output=tokens,
                alpha_text=alpha_text, alpha_image=alpha_image, mode=alpha_mode,
            )  # fmt: skip
            sampled = self._ours(
                "MagDiffSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=seed,
                steps=steps, cfg=cfg,
            )[0]  # fmt: skip
            return self.core["VAEDecode"]().decode(self.vae, sampled)[0].cpu()
