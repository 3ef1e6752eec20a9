"""ComfyUI's TRACKS: a dict of `track_path` `[T, N, 2]`, (x, y) in pixels, and `track_visibility` `[T, N]` or `[T, 1]`.

TRACKS carries no picture size: positions are in pixels of the frames that go to the same node. They count from pixel edges, so
the centre of the first pixel is at (0.5, 0.5), and int(x) is the column that a point lies in.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor


def make_tracks(path: Tensor, visibility: Tensor) -> dict[str, Tensor]:
    """TRACKS from positions `[T, N, 2]` and visibility `[T, N]`."""
    return {"track_path": path.float(), "track_visibility": visibility.bool()}


def read_tracks(tracks: dict, name: str = "tracks", frames: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions `[T, N, 2]` float32 and visibility `[T, N]` bool on the CPU. Missing visibility means always visible.

    Raises ValueError, with numbers, for other shapes, values that are no numbers, or (with `frames`) another length.
    """
    path = tracks.get("track_path") if isinstance(tracks, dict) else None
    if not isinstance(path, Tensor) or path.ndim != 3 or path.shape[-1] != 2:
        found = f"of shape {list(path.shape)}" if isinstance(path, Tensor) else "missing"
        raise ValueError(f"{name} must hold track_path [frames, points, 2], it is {found}: wire TRACKS of Track Points")
    path = path.detach().float().cpu()
    length, count = path.shape[:2]
    visibility = tracks.get("track_visibility")
    visibility = torch.ones(length, 1) if visibility is None else visibility.detach().cpu()
    if visibility.ndim != 2 or visibility.shape[0] != length or visibility.shape[1] not in (1, count):
        raise ValueError(
            f"{name}: track_visibility is {list(visibility.shape)}, track_path has {length} frames of {count} points: "
            f"it must be [{length}, {count}] or [{length}, 1]"
        )
    visibility = (visibility > 0.5).expand(length, count)
    bad = int((~torch.isfinite(path[visibility])).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} positions that are NaN or infinite: look at the node that made them")
    if frames is not None and length != frames:
        raise ValueError(f"{name} has {length} frames, the clip {frames}: track or draw for the same clip")
    # A point that is not visible may have any position; nothing may follow from it.
    return torch.nan_to_num(path, 0.0, 0.0, 0.0), visibility


def scale_path(path: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Positions in pixels of a picture of `size` (width, height) as pixels of the same picture at `new_size`."""
    return path * path.new_tensor([new / old for new, old in zip(new_size, size, strict=True)])


def touches(path: Tensor, visibility: Tensor, width: int, height: int) -> Tensor:
    """Which tracks `[N]` are visible inside of the picture in at least one frame."""
    inside = (path >= 0).all(-1) & (path[..., 0] < width) & (path[..., 1] < height)
    return (inside & visibility).any(0)


def coordinates_json(path: Tensor) -> str:
    """Positions as the coordinate string that KJNodes and core's track nodes read: a list of `[{"x", "y"}, ...]`, one a track."""
    tracks = path.double().transpose(0, 1).tolist()
    return json.dumps([[{"x": round(x, 3), "y": round(y, 3)} for x, y in track] for track in tracks])
