"""What the control branch is shown: content, motion and the edit region, in pixels of the size that is sampled."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import motion_map, reference
from .resolution import same_but_for_rounding
from .tracks import scale_path

log = logging.getLogger("magdiff")

DEFAULT = "default"
REFERENCE = "reference"
MAP_MODES = (DEFAULT, REFERENCE)
"""How motion maps are made: `motion_map.motion_map`, or `reference.motion_map` as the released script for tracked points."""

HOLE = -1.0
"""Value of the video inside of the edit region: black."""


@dataclass(frozen=True, eq=False)
class ControlHints:
    """The three inputs of the control branch for a whole clip.

    `content`: the source video `[F, 3, H, W]` in -1 .. 1 with -1 inside of the region in every frame, the first one too.
    `motion`: c_mot `[F, 2, H, W]`, (dy, dx) in pixels, filtered. `edit_region`: `[F, 1, H, W]`, 1 = may change, only 0 and 1.
    """

    content: Tensor
    motion: Tensor
    edit_region: Tensor

    @property
    def frames(self) -> int:
        return self.content.shape[0]

    @property
    def region_stands_still(self) -> bool:
        """Whether all frames have the same region."""
        return bool((self.edit_region == self.edit_region[:1]).all())


@dataclass(frozen=True, eq=False)
class EditRequest:
    """What the user asks: where the video may change and how things move there. Sizes are those of the source.

    `source_frames`: `[F, H, W, 3]` in 0 .. 1. `edit_mask`: `[1 or F, H, W]`, 1 = may change. `path`: `[F, N, 2]`, (x, y) in
    pixels of the source frames, and `visibility` `[F, N]`. `map_mode`: one of `MAP_MODES`.
    """

    source_frames: Tensor
    edit_mask: Tensor
    path: Tensor
    visibility: Tensor
    map_mode: str = DEFAULT

    @property
    def frames(self) -> int:
        return self.source_frames.shape[0]

    @property
    def pixels(self) -> int:
        """Pixels of a source frame."""
        return self.source_frames.shape[1] * self.source_frames.shape[2]

    def hints(self, width: int, height: int) -> ControlHints:
        """The inputs of the control branch for a clip sampled at `width` x `height` pixels.

        Frames are stretched to that size (bicubic, as in the released scripts, which use pictures of 8 bits); the mask is resized
        and cut at one half, as the model knows only 0 and 1; tracks are scaled, then drawn at that size: the filter is fixed in
        pixels of the working size. A region that is too thin to be left at that size is logged. Raises ValueError when the shapes
        differ by more than the rounding of sides explains.
        """
        source_height, source_width = self.source_frames.shape[1:3]
        if not same_but_for_rounding((width, height), (source_width, source_height)):
            raise ValueError(
                f"source_frames are {source_width}x{source_height}, the clip is sampled at {width}x{height}, another shape: "
                "edit the first frame of source_frames itself, and keep its shape"
            )
        video = self.source_frames.float().movedim(-1, 1)
        region = self.edit_mask.float()[:, None]
        if (source_height, source_width) != (height, width):
            video = interpolate(video, (height, width), mode="bicubic", antialias=True, align_corners=False)
        if tuple(region.shape[-2:]) != (height, width):
            region = interpolate(region, (height, width), mode="bilinear", antialias=True, align_corners=False)
        region = (region >= 0.5).float().expand(self.frames, -1, -1, -1)
        if not region.any() and (self.edit_mask >= 0.5).any():
            log.warning(
                "edit_mask is so thin that nothing of it is left at %dx%d: nothing is edited. Draw a larger region, or sample at a "
                "higher resolution",
                width,
                height,
            )
        video = video.clamp(0.0, 1.0) * 2.0 - 1.0
        path = scale_path(self.path, (source_width, source_height), (width, height))
        if self.map_mode == REFERENCE:
            motion = reference.motion_map(path, height, width)
        else:
            motion = motion_map.motion_map(path, self.visibility, height, width)
        return ControlHints(torch.where(region > 0.5, HOLE, video), motion, region)
