"""Real photographs with box and points for Subject Segment, as a user would set them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Photo:
    """A picture that scikit-image ships. box: (x, y, width, height); points: (x, y); all in pixels of the picture."""

    name: str
    box: tuple[int, int, int, int]
    on_subject: tuple[tuple[int, int], ...]
    on_background: tuple[tuple[int, int], ...]

    def save(self, folder: Path) -> Path:
        """Writes the picture as a PNG into `folder` and returns its path."""
        import skimage.data
        from PIL import Image

        file = folder / f"magdiff_demo_{self.name}.png"
        Image.fromarray(getattr(skimage.data, self.name)()[..., :3]).save(file)
        return file


PHOTOS = (
    Photo(
        "astronaut",
        (25, 5, 480, 507),
        ((225, 110), (225, 45), (225, 75), (100, 350), (200, 450), (320, 330), (230, 250)),
        ((60, 60), (350, 100), (440, 100), (20, 300), (470, 250)),
    ),
    Photo(
        "chelsea",
        (1, 1, 430, 298),
        (
            (190, 90), (110, 180), (270, 200), (60, 230), (140, 60), (300, 100), (110, 30), (347, 60), (384, 18), (32, 200),
            (70, 40), (20, 285), (120, 280), (362, 110), (240, 245), (350, 150), (60, 110), (225, 25), (275, 25), (315, 45),
        ),
        ((425, 110), (436, 240), (10, 8), (10, 60), (347, 268), (330, 290), (420, 30), (405, 170)),
    ),
    Photo(
        "coffee",
        (85, 10, 420, 370),
        ((300, 130), (220, 90), (380, 90), (300, 240), (180, 280), (430, 270), (300, 350), (140, 250)),
        ((60, 60), (560, 60), (40, 360), (550, 380), (500, 120)),
    ),
)  # fmt: skip


def segment_prompt(photo: Photo, uploaded: str, defaults: dict[str, object]) -> dict[str, dict]:
    """API prompt that cuts the subject out of the uploaded picture: node "mask" previews the mask, "cut" the subject.

    Args:
        uploaded: name of the picture in the server's input folder.
        defaults: value of every required widget of Subject Segment.
    """
    points = lambda places: json.dumps([{"x": x, "y": y} for x, y in places])  # noqa: E731
    x, y, width, height = photo.box
    inputs = {
        **defaults, "images": ["picture", 0], "box_x": x, "box_y": y, "box_width": width, "box_height": height,
        "positive_points": points(photo.on_subject), "negative_points": points(photo.on_background),
    }  # fmt: skip
    return {
        "picture": {"class_type": "LoadImage", "inputs": {"image": uploaded}},
        "segment": {"class_type": "MagDiffSubjectSegment", "inputs": inputs},
        "as_image": {"class_type": "MaskToImage", "inputs": {"mask": ["segment", 1]}},
        "mask": {"class_type": "PreviewImage", "inputs": {"images": ["as_image", 0]}},
        "cut": {"class_type": "PreviewImage", "inputs": {"images": ["segment", 0]}},
    }
