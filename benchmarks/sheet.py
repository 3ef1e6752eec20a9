"""Contact sheets: rows of pictures with text beside them, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 112
GAP = 6
TEXT_WIDTH = 300
LETTERS = 46
GROUND = (24, 24, 28)
INK = (232, 232, 236)


@dataclass(frozen=True)
class SheetRow:
    """first: the reference `[h, w, 3]`, or None for none. frames: `[n, h, w, 3]`. All in 0..1, of any size."""

    first: Tensor | None
    frames: Tensor | Sequence[Tensor]
    text: str


def tile(picture: Tensor, side: int) -> Image.Image:
    """A picture `[h, w, 3]` in 0..1 fitted into a square: small ones in whole pixels, large ones averaged."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = picture.float().movedim(-1, 0)[None]
    if scale > 1:
        planes = F.interpolate(planes, size, mode="nearest-exact")
    else:
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
    pixels = (planes[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    fitted = Image.new("RGB", (side, side), GROUND)
    fitted.paste(Image.fromarray(pixels), ((side - size[1]) // 2, (side - size[0]) // 2))
    return fitted


def draw_sheet(rows: Sequence[SheetRow], file: Path) -> None:
    """Writes the rows one under the other; a row without frames is a heading."""
    most = max((len(row.frames) for row in rows), default=0)
    heights = [TILE + GAP if len(row.frames) else 34 for row in rows]
    left = TILE + 3 * GAP
    sheet = Image.new("RGB", (left + most * (TILE + GAP) + TEXT_WIDTH, sum(heights) + GAP), GROUND)
    pen = ImageDraw.Draw(sheet)
    font, heading = ImageFont.load_default(12), ImageFont.load_default(17)
    top = GAP
    for row, height in zip(rows, heights):
        if not len(row.frames):
            pen.text((GAP, top + 8), row.text, fill=INK, font=heading)
            top += height
            continue
        if row.first is not None:
            sheet.paste(tile(row.first, TILE), (GAP, top))
        for index, frame in enumerate(row.frames):
            sheet.paste(tile(frame, TILE), (left + index * (TILE + GAP), top))
        lines = [line for part in row.text.split("\n") for line in textwrap.wrap(part, LETTERS, subsequent_indent="  ")]
        pen.text((left + most * (TILE + GAP) + GAP, top), "\n".join(lines), fill=INK, font=font, spacing=3)
        top += height
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
