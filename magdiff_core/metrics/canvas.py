"""Lines, areas and text as one smooth picture: what the plots draw on."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SCALE = 2
"""Drawn larger and made smaller, which smooths the lines."""
INK, PALE = "#222222", "#666666"


class Canvas:
    """A white picture; places and sizes are pixels of the finished one, from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.pictures: list[tuple[Image.Image, tuple[int, int]]] = []

    def line(self, points: list[tuple[float, float]], colour: str, thickness: float = 1.0) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(thickness * SCALE)), joint="curve")

    def dot(self, x: float, y: float, colour: str, radius: float = 3.0) -> None:
        self.draw.ellipse([(x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE], fill=colour)

    def area(self, points: list[tuple[float, float]], colour: str) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def text(self, x: float, y: float, text: str, size: int = 14, colour: str = INK, anchor: str = "la") -> None:
        self.draw.text((x * SCALE, y * SCALE), text, fill=colour, font=ImageFont.load_default(size * SCALE), anchor=anchor)

    def upright(self, x: float, y: float, text: str, size: int = 13) -> None:
        """Text that runs upwards, centred on the place."""
        font = ImageFont.load_default(size * SCALE)
        left, top, right, bottom = font.getbbox(text)
        label = Image.new("RGB", (right - left + 4, bottom - top + 4), "white")
        ImageDraw.Draw(label).text((2 - left, 2 - top), text, fill=PALE, font=font)
        label = label.rotate(90, expand=True)
        self.image.paste(label, (round(x * SCALE - label.width / 2), round(y * SCALE - label.height / 2)))

    def picture(self, x: float, y: float, picture: Image.Image) -> None:
        """A picture, its upper left corner at the place; it lies above everything else, with its pixels as they are."""
        self.pictures.append((picture, (round(x), round(y))))

    def smaller(self) -> Image.Image:
        """The finished picture."""
        smaller = self.image.resize((self.image.width // SCALE, self.image.height // SCALE), Image.Resampling.LANCZOS)
        for picture, place in self.pictures:
            smaller.paste(picture, place)
        return smaller

    def finished(self) -> Tensor:
        """The finished picture as IMAGE `[1, H, W, 3]` in 0..1."""
        return torch.from_numpy(np.asarray(self.smaller(), dtype=np.float32) / 255)[None]
