"""Drawn paths to positions, against places that can be worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch

from magdiff_core.motion.paths import positions
from magdiff_core.motion.trajectories import parse_trajectories

WIDTH, HEIGHT = 100, 50


def sampled(frames: int, *tracks: dict) -> tuple[torch.Tensor, torch.Tensor]:
    data = {"v": 1, "size": [WIDTH, HEIGHT], "fps": 8, "frames": frames, "tracks": list(tracks)}
    return positions(parse_trajectories(json.dumps(data)))


def knots(*places: tuple) -> list[dict]:
    """Points from (x, y) or (x, y, t), in pixels."""
    return [{"u": p[0] / WIDTH, "v": p[1] / HEIGHT, **({"t": p[2]} if len(p) > 2 else {})} for p in places]


def path(frames: int, points: list[dict], **options) -> torch.Tensor:
    got = sampled(frames, {"points": points, **options})[0]
    assert got.shape == (frames, 1, 2)
    assert got.dtype == torch.float32
    return got[:, 0]


def close(got: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


def test_a_line_has_the_same_step_in_every_frame_and_ends_at_its_end():
    close(path(5, knots((10, 10), (50, 30))), [[10, 10], [20, 15], [30, 20], [40, 25], [50, 30]])


def test_the_speed_is_constant_around_a_corner():
    # 30 + 10 pixels of path: pixels count, not shares of unequal sides
    close(path(5, knots((10, 10), (40, 10), (40, 20))), [[10, 10], [20, 10], [30, 10], [40, 10], [40, 20]])


def test_times_of_points_decide():
    got = path(5, knots((0, 10), (40, 10, 0.25), (40, 10, 0.75), (80, 10)))
    close(got, [[0, 10], [40, 10], [40, 10], [40, 10], [80, 10]])


def test_points_without_a_time_between_two_at_one_place():
    close(path(5, knots((20, 10), (20, 10), (20, 10)), ease="in"), [[20, 10]] * 5)


def test_before_its_start_and_after_its_end_the_point_rests():
    close(path(5, knots((10, 10), (30, 10)), start=0.25, end=0.75), [[10, 10], [10, 10], [20, 10], [30, 10], [30, 10]])


@pytest.mark.parametrize(
    ("ease", "shares"),
    [("linear", [0, 0.25, 0.5, 0.75, 1]), ("in", [0, 1 / 16, 1 / 4, 9 / 16, 1]), ("out", [0, 7 / 16, 3 / 4, 15 / 16, 1]),
     ("in_out", [0, 0.15625, 0.5, 0.84375, 1])],
)  # fmt: skip
def test_ease(ease, shares):
    close(path(5, knots((0, 10), (80, 10)), ease=ease), [[80 * s, 10] for s in shares])


def test_one_point_is_an_anchor():
    close(path(3, knots((12.5, 20))), [[12.5, 20]] * 3)


def test_a_single_frame_shows_the_start():
    close(path(1, knots((10, 10), (50, 30))), [[10, 10]])


def test_a_smooth_curve_passes_through_its_points_and_differs_from_the_line():
    points = knots((10, 10, 0), (40, 40, 0.25), (70, 10, 0.75), (90, 40, 1))
    got = path(5, points, curve="smooth")
    close(got[[0, 1, 3, 4]], [[10, 10], [40, 40], [70, 10], [90, 40]])
    straight = path(41, points)
    assert (path(41, points, curve="smooth") - straight).norm(dim=1).max() > 2.0


def test_a_smooth_curve_of_two_points_is_the_line():
    close(path(5, knots((10, 10), (50, 30)), curve="smooth"), [[10, 10], [20, 15], [30, 20], [40, 25], [50, 30]])


def test_a_smooth_curve_stays_near_a_circle_at_constant_speed():
    angles = torch.linspace(0, torch.pi, 9)
    circle = torch.stack((50 + 20 * angles.cos(), 25 + 20 * angles.sin()), 1)
    got = path(33, knots(*[(x, y) for x, y in circle.tolist()]), curve="smooth")
    radius = (got - torch.tensor([50.0, 25.0])).norm(dim=1)
    # the ends go straight on, between other points the curve is a circle
    assert (radius - 20).abs().max() < 0.3
    assert (radius - 20)[4:-4].abs().max() < 0.02
    steps = (got[1:] - got[:-1]).norm(dim=1)
    assert steps.max() / steps.min() < 1.01


def test_a_smooth_curve_may_rest():
    got = path(5, knots((10, 10, 0), (50, 10, 0.25), (50, 10, 0.75), (90, 10, 1)), curve="smooth")
    close(got, [[10, 10], [50, 10], [50, 10], [50, 10], [90, 10]])


def test_visibility_by_spans_of_time():
    points = knots((10, 10), (50, 10))
    spans = ([[0, 1]], [[0, 0.25], [0.7, 0.75]], [])
    _, seen = sampled(5, *[{"points": points, "visible": visible} for visible in spans])
    assert seen.T.tolist() == [[True] * 5, [True, True, False, True, False], [False] * 5]


def test_spans_end_at_frames_that_no_float_hits():
    # frame 1 of 14 is at 1/13
    _, seen = sampled(14, {"points": knots((10, 10)), "visible": [[0, round(1 / 13, 7)]]})
    assert seen[:, 0].tolist() == [True, True] + [False] * 12


def test_no_tracks():
    path, seen = sampled(5)
    assert path.shape == (5, 0, 2)
    assert seen.shape == (5, 0)


def test_the_size_of_the_picture_scales_and_the_number_of_frames_resamples():
    data = {"v": 1, "size": [50, 100], "fps": 8, "frames": 3, "tracks": [{"points": [{"u": 0, "v": 0}, {"u": 1, "v": 1}]}]}
    got, _ = positions(parse_trajectories(json.dumps(data)))
    close(got[:, 0], [[0, 0], [25, 50], [50, 100]])
