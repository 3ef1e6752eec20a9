"""Bring frames to the size and range that an image encoder was trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's and LAION's CLIP, RGB in 0..1."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of DINO, RGB in 0..1."""
VIDEO_FRAMES = 16
"""Frames that C3D takes, and that FVD is published with."""
I3D_LEAST_FRAMES = 10


def short_side_to(frames: torch.Tensor, side: int, mode: str = "bicubic") -> torch.Tensor:
    """Resize `[F, H, W, 3]` in 0..1 so that the shorter side is `side` pixels; antialiased, rounded to 8 bits as a file is."""
    height, width = frames.shape[1:3]
    # The longer side is cut to whole pixels, not rounded, as in torchvision, which the encoders were trained with.
    size = (height * side // min(height, width), width * side // min(height, width))
    if size != (height, width):
        moved = F.interpolate(frames.movedim(-1, 1), size, mode=mode, antialias=True, align_corners=False)
        frames = moved.movedim(1, -1)
    return (frames.clamp(0, 1) * 255).round() / 255


def centre(frames: torch.Tensor, side: int) -> torch.Tensor:
    """The middle `side` x `side` pixels of `[F, H, W, 3]`."""
    top, left = round((frames.shape[1] - side) / 2), round((frames.shape[2] - side) / 2)
    return frames[:, top : top + side, left : left + side]


def for_clip(frames: torch.Tensor, side: int) -> torch.Tensor:
    """CLIP's own preprocessing: shorter side to `side`, centre crop, normalised.

    Args:
        frames: `[F, H, W, 3]` in 0..1.
        side: what the encoder takes, 224 for most.

    Returns:
        `[F, 3, side, side]`.
    """
    return _normalise(centre(short_side_to(frames, side), side), CLIP_MEAN, CLIP_STD)


def for_dino(frames: torch.Tensor, side: int) -> torch.Tensor:
    """DINO's own preprocessing: shorter side to 8/7 of `side` (256 for 224), centre crop, normalised.

    Args:
        frames: `[F, H, W, 3]` in 0..1.
        side: what the encoder takes, 224.

    Returns:
        `[F, 3, side, side]`.
    """
    return _normalise(centre(short_side_to(frames, round(side * 8 / 7)), side), IMAGENET_MEAN, IMAGENET_STD)


def for_i3d(frames: torch.Tensor) -> torch.Tensor:
    """`[F, H, W, 3]` in 0..1 -> `[3, F, 224, 224]` in -1..1: shorter side to 224, centre crop. Fewer than 10 frames, which I3D
    cannot take, are slowed down to 16."""
    if len(frames) < I3D_LEAST_FRAMES:
        frames = to_length(frames, VIDEO_FRAMES)
    return centre(short_side_to(frames, 224, "bilinear"), 224).permute(3, 0, 1, 2) * 2 - 1


def for_c3d(frames: torch.Tensor) -> torch.Tensor:
    """`[F, H, W, 3]` in 0..1 -> `[3, 16, 112, 112]` in 0..255: 16 frames, shorter side to 128, centre crop."""
    return centre(short_side_to(to_length(frames, VIDEO_FRAMES), 128, "bilinear"), 112).permute(3, 0, 1, 2) * 255


def for_c3d_script(frames: torch.Tensor) -> torch.Tensor:
    """`[F, H, W, 3]` in 0..1 -> `[3, 16, H, W]` uint8: the TorchScript C3D resizes and crops by itself."""
    return (to_length(frames, VIDEO_FRAMES).clamp(0, 1) * 255).round().to(torch.uint8).permute(3, 0, 1, 2)


def to_length(frames: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` frames; fewer are slowed down by showing each frame longer."""
    if len(frames) >= count:
        return frames[:count]
    return frames[torch.arange(count) * len(frames) // count]


def _normalise(frames: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return ((frames - frames.new_tensor(mean)) / frames.new_tensor(std)).movedim(-1, 1)
