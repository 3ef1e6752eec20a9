"""Draw Trajectories and Track Points: where things move, drawn or taken from a clip."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..magdiff_core.host.progress import frame_counter
from ..magdiff_core.images import clean_images, fit_mask
from ..magdiff_core.motion.drawing import read_drawing
from ..magdiff_core.motion.point_tracking import follow_points, grid_points, sample_by_length
from ..magdiff_core.motion.preview import preview_frames
from ..magdiff_core.motion.tracks import coordinates_json, make_tracks
from ..magdiff_core.motion.trajectories import EMPTY
from ..magdiff_core.segment.prompts import parse_points
from .preview import PREVIEW_FPS, show_frames

CATEGORY = "MagDiff/motion"
GRID, POINTS = "grid", "points"
ALL, BY_LENGTH = "all", "by length"

log = logging.getLogger("magdiff")


class DrawTrajectories(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffDrawTrajectories",
            display_name="Draw Trajectories",
            category=CATEGORY,
            description="Turns a drawing of regions and trajectories into masks and tracks. The drawing is one string of JSON, "
            "with places as shares of the picture and times as shares of the clip, so it fits any size and length.",
            search_aliases=["trajectory", "spline", "drag", "motion brush", "path", "tracks", "revideo", "region"],
            inputs=[
                io.String.Input(
                    "trajectories",
                    multiline=True,
                    default=EMPTY,
                    tooltip="Regions and tracks as JSON, version 1; the help page has the format.",
                ),
                io.Image.Input(
                    "source_frames",
                    optional=True,
                    tooltip="The clip that is drawn on. Its size and length replace those in the string; a single picture "
                    "replaces the size only.",
                ),
            ],
            outputs=[
                io.Tracks.Output("tracks", tooltip="Position of each point in each frame, in pixels of the frames."),
                io.Mask.Output("edit_mask", tooltip="1 = may change: all regions together, one mask per frame."),
                io.Mask.Output(
                    "edit_masks", is_output_list=True, tooltip="A mask for each region; the empty edit_mask when there is none."
                ),
                io.String.Output("coordinates", tooltip="The tracks as coordinate JSON, for KJNodes and core's track nodes."),
                io.Image.Output("preview", tooltip="Regions and tracks over the frames, as the motion condition has them."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trajectories: str, source_frames: torch.Tensor | None = None) -> io.NodeOutput:
        clip = None
        if source_frames is not None:
            source_frames = clean_images(source_frames, "source_frames")
            clip = tuple(source_frames.shape[:3])
        drawing = read_drawing(trajectories, clip)
        for note in drawing.notes:
            log.info("Draw Trajectories: %s", note)
        drawn = drawing.drawn
        preview = preview_frames(
            drawn.frames,
            (drawn.width, drawn.height),
            drawing.path,
            drawing.visibility,
            source_frames,
            drawing.edit_mask if drawing.edit_masks else None,
            [track.color for track in drawn.tracks],
            frame_counter(drawn.frames),
        )
        return io.NodeOutput(
            make_tracks(drawing.path, drawing.visibility),
            drawing.edit_mask.contiguous(),
            [mask.contiguous() for mask in drawing.edit_masks or [drawing.edit_mask]],
            coordinates_json(drawing.path),
            preview,
            ui=_show(preview, drawn.fps, drawing.notes, cls),
        )


class TrackPoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagDiffTrackPoints",
            display_name="Track Points",
            category=CATEGORY,
            description="Follows points through a clip, without any model file (Lucas-Kanade with a check forth and back), so "
            "that an edit can keep the motion of the source.",
            search_aliases=["cotracker", "point tracker", "optical flow", "tracks", "trajectory", "motion transfer", "revideo"],
            inputs=[
                io.Image.Input("source_frames", tooltip="The clip to follow points in; 2 frames or more."),
                io.Combo.Input(
                    "start_from",
                    options=[GRID, POINTS],
                    default=GRID,
                    tooltip="grid: points on a grid, inside of edit_mask where it is wired. points: those in the points field.",
                ),
                io.Int.Input(
                    "grid_spacing", default=32, min=4, max=512, tooltip="Pixels from one point of the grid to the next."
                ),
                io.String.Input(
                    "points",
                    default="",
                    multiline=False,
                    tooltip='Points as JSON like [{"x": 120, "y": 80}] in pixels of start_frame (for start_from points).',
                ),
                io.Combo.Input(
                    "keep",
                    options=[ALL, BY_LENGTH],
                    default=ALL,
                    tooltip="all: every point that could be followed. by length: 1 to 10 drawn by seed from those that move more "
                    "than the mean, the far ones rather (how ReVideo was trained).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Which points are drawn (for keep by length).",
                ),
                io.Int.Input(
                    "start_frame",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip="Frame in which the points lie, from 0; they are followed to both ends.",
                    advanced=True,
                ),
                io.Float.Input(
                    "tolerance",
                    default=1.0,
                    min=0.05,
                    max=50.0,
                    step=0.05,
                    tooltip="Pixels by which a point may miss its place when followed back; beyond that it counts as lost.",
                    advanced=True,
                ),
                io.Mask.Input(
                    "edit_mask", optional=True, tooltip="Where the grid lies, 1 = inside. With several frames, that of start_frame."
                ),
            ],
            outputs=[
                io.Tracks.Output("tracks", tooltip="Position of each point in each frame, and where it was lost."),
                io.String.Output("coordinates", tooltip="The tracks as coordinate JSON, for KJNodes and core's track nodes."),
                io.Image.Output("preview", tooltip="The points over the frames; hollow where they are lost."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        source_frames: torch.Tensor,
        start_from: str,
        grid_spacing: int,
        points: str,
        keep: str,
        seed: int,
        start_frame: int,
        tolerance: float,
        edit_mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        source_frames = clean_images(source_frames, "source_frames")
        frames, height, width = source_frames.shape[:3]
        if frames < 2:
            raise ValueError("source_frames is a single picture: points are followed through a clip of 2 frames or more.")
        if start_frame >= frames:
            raise ValueError(f"start_frame is {start_frame}, source_frames has frames 0 to {frames - 1}.")
        if start_from == POINTS:
            chosen = torch.tensor(parse_points(points, "points", width, height)).reshape(-1, 2)
            if len(chosen) == 0:
                raise ValueError('points is empty: write some like [{"x": 120, "y": 80}], or set start_from to grid.')
        else:
            inside = None
            if edit_mask is not None:
                fitted = fit_mask(edit_mask, "edit_mask", frames, height, width)
                inside = fitted[start_frame if len(fitted) > 1 else 0]
            chosen = grid_points(width, height, grid_spacing, inside)
        each_frame = frame_counter(2 * frames - 1)
        path, visibility = follow_points(source_frames, chosen, start_frame, tolerance, each_frame)
        followed = visibility.sum(0) > 1
        if not followed.any():
            raise ValueError(
                f"none of the {len(chosen)} points could be followed to the next frame: choose points on corners or texture, "
                "or raise tolerance."
            )
        notes = [f"{int(visibility.all(0).sum())} of {len(chosen)} points were followed through all {frames} frames."]
        if start_from == GRID:
            # A point of the grid on flat ground was nobody's wish.
            path, visibility = path[:, followed], visibility[:, followed]
        if keep == BY_LENGTH:
            drawn = sample_by_length(path, visibility, seed)
            path, visibility = path[:, drawn], visibility[:, drawn]
            notes.append(f"{len(drawn)} were drawn by length.")
        for note in notes:
            log.info("Track Points: %s", note)
        preview = preview_frames(
            frames, (width, height), path, visibility, source_frames, edit_mask=None, each_frame=each_frame
        )
        return io.NodeOutput(
            make_tracks(path, visibility), coordinates_json(path), preview, ui=_show(preview, PREVIEW_FPS, tuple(notes), cls)
        )


def _show(preview: torch.Tensor, fps: float, notes: tuple[str, ...], cls: type[io.ComfyNode]) -> dict:
    return {**show_frames(preview, "MagDiff_motion", cls, fps).as_dict(), "text": list(notes)}


NODES = [DrawTrajectories, TrackPoints]
