"""Segment Anything (Kirillov et al. 2023) from a state dict, whose tensors tell all sizes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .prompts import Prompt

VARIANTS = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}
"""Name of the published models by width and depth of the image encoder."""


@dataclass(frozen=True)
class SamSizes:
    """Sizes of a model. The published ones differ in `width`, `depth`, `heads` and `global_blocks` only."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int
    image_side: int
    patch: int
    prompt_width: int
    decoder_depth: int
    decoder_hidden: int
    iou_depth: int
    iou_hidden: int
    mask_channels: int

    @property
    def variant(self) -> str:
        return VARIANTS.get((self.width, self.depth), f"vit of width {self.width} and depth {self.depth}")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a Segment Anything file, safetensors or a PyTorch file of plain tensors (no code in it is run).

    Raises:
        ValueError: when the file is damaged, holds pickled code or is no state dict.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is damaged or holds pickled code, which is never run: use the published .pth or a .safetensors file."
        ) from error
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read ({error}): download it again.") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path.name} is no state dict of a Segment Anything model.")
    return state


def _count(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def detect_sizes(state: Mapping[str, torch.Tensor], name: str) -> SamSizes:
    """Read all sizes off the shapes of a state dict.

    Args:
        state: as `read_state_dict` gives it.
        name: of the file, for error messages.

    Raises:
        ValueError: when this is another family (SAM2, SAM3, HQ-SAM, MobileSAM) or no such model at all.
    """
    wanted = "models/sams takes the original Segment Anything files (sam_vit_b/l/h)"
    if any("hf_token" in key or "hf_mlp" in key for key in state):
        raise ValueError(f"{name} is an HQ-SAM file: {wanted}.")
    if any("memory_encoder" in key or key.startswith("sam_mask_decoder") for key in state):
        raise ValueError(f"{name} is a SAM2 or SAM3 file: {wanted}; wire SAM3's or SAM2's mask to subject_mask instead.")
    if any(key.startswith("image_encoder.layers.") for key in state):
        raise ValueError(f"{name} is a MobileSAM file: {wanted}.")
    try:
        position = state["image_encoder.pos_embed"]
        patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
        depth, width, grid = _count(state, "image_encoder.blocks."), position.shape[-1], position.shape[1]
        reach = [state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape for block in range(depth)]
        prompt_width = state["image_encoder.neck.0.weight"].shape[0]
        windows = [(length + 1) // 2 for length, _ in reach]
        global_blocks = tuple(block for block, window in enumerate(windows) if window == grid)
        return SamSizes(
            width=width,
            depth=depth,
            heads=width // reach[0][1],
            global_blocks=global_blocks,
            window=min(windows) if len(global_blocks) < depth else 0,
            image_side=grid * patch,
            patch=patch,
            prompt_width=prompt_width,
            decoder_depth=_count(state, "mask_decoder.transformer.layers."),
            decoder_hidden=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
            iou_depth=_count(state, "mask_decoder.iou_prediction_head.layers."),
            iou_hidden=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
            mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{name} is no Segment Anything file (missing {error}): {wanted}.") from error


def build_sam(state: Mapping[str, torch.Tensor], name: str) -> torch.nn.Module:
    """Build the model without a path and load it strictly.

    Args:
        state: as `read_state_dict` gives it.
        name: of the file, for error messages.

    Returns:
        segment_anything's `Sam` in evaluation mode on the CPU, in the dtype of the file.

    Raises:
        ImportError: when segment-anything is not installed.
        ValueError: when the file is of another family, incomplete or holds more than the model.
    """
    sizes = detect_sizes(state, name)
    try:
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    except ImportError as error:
        raise ImportError(
            "the SAM method needs segment-anything: run `pip install segment-anything` in ComfyUI's Python "
            "environment and restart, or choose method GrabCut."
        ) from error
    grid = sizes.image_side // sizes.patch
    model = Sam(
        image_encoder=ImageEncoderViT(
            depth=sizes.depth,
            embed_dim=sizes.width,
            img_size=sizes.image_side,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=sizes.heads,
            patch_size=sizes.patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=sizes.global_blocks,
            window_size=sizes.window,
            out_chans=sizes.prompt_width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=sizes.prompt_width,
            image_embedding_size=(grid, grid),
            input_image_size=(sizes.image_side, sizes.image_side),
            mask_in_chans=sizes.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=sizes.decoder_depth,
                embedding_dim=sizes.prompt_width,
                mlp_dim=sizes.decoder_hidden,
                num_heads=8,
            ),
            transformer_dim=sizes.prompt_width,
            iou_head_depth=sizes.iou_depth,
            iou_head_hidden_dim=sizes.iou_hidden,
        ),
    )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{name} does not fit Segment Anything ({sizes.variant}): {error}") from error
    return model.eval().requires_grad_(False)


def _inner_box(mask: np.ndarray, margin: float = 0.05) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    height, width = mask.shape
    return np.array([max(0, x0 - dx), max(0, y0 - dy), min(width, x1 + dx), min(height, y1 + dy)])


class SamSegmenter:
    """Masks of single pictures from boxes, points or an expected mask."""

    def __init__(self, model: torch.nn.Module) -> None:
        """`model`: a `Sam` that already is on the device where it shall run."""
        from segment_anything import SamPredictor

        self.predictor = SamPredictor(model)

    def _show(self, image: np.ndarray) -> None:
        self.predictor.set_image(np.ascontiguousarray(image), image_format="RGB")

    @torch.inference_mode()
    def segment(self, image: np.ndarray, prompt: Prompt) -> np.ndarray:
        """Mask of the subject in one picture; several boxes give the union of their masks.

        Args:
            image: uint8 RGB `[H, W, 3]`.
            prompt: boxes and points in pixels; at least a box or a positive point.

        Returns:
            bool `[H, W]`.
        """
        self._show(image)
        points = np.array([*prompt.positive, *prompt.negative], np.float32).reshape(-1, 2)
        labels = np.array([1] * len(prompt.positive) + [0] * len(prompt.negative), np.int32)
        union = np.zeros(image.shape[:2], bool)
        for box in prompt.boxes or (None,):
            # Three candidates settle what a lone point means; with more to go on one mask is better (SAM section 3).
            ambiguous = box is None and len(points) == 1
            masks, scores, _ = self.predictor.predict(
                point_coords=points if len(points) else None,
                point_labels=labels if len(points) else None,
                box=None if box is None else np.array(box, np.float32),
                multimask_output=ambiguous,
            )
            union |= masks[int(scores.argmax())]
        return union

    @torch.inference_mode()
    def refine(self, image: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Better mask where one is expected: prompted by its box and by the mask itself.

        Args:
            image: uint8 RGB `[H, W, 3]`.
            expected: bool `[H, W]`, not empty.

        Returns:
            bool `[H, W]`.
        """
        self._show(image)
        height, width = expected.shape
        side = self.predictor.model.prompt_encoder.mask_input_size
        # The picture lies in the top left corner of SAM's square, its longer side filling it.
        inner = tuple(max(1, round(full * length / max(height, width))) for full, length in zip(side, (height, width), strict=True))
        scaled = torch.from_numpy(expected).float()[None, None]
        small = torch.nn.functional.interpolate(scaled, inner, mode="bilinear", antialias=True)
        # The decoder was trained on logits of its own; +-8 is a clear yes and no.
        logits = torch.full((1, 1, *side), -8.0)
        logits[..., : inner[0], : inner[1]] = 16 * small - 8
        masks, _, _ = self.predictor.predict(box=_inner_box(expected), mask_input=logits[0].numpy(), multimask_output=False)
        return masks[0]
