"""Motion maps of the default mode, edit masks and TRACKS."""

from __future__ import annotations

import json
import math

import pytest
import torch

from magdiff_core.motion import reference
from magdiff_core.motion.motion_map import displacements, motion_map, spread
from magdiff_core.motion.regions import edit_masks, region_mask, union
from magdiff_core.motion.tracks import coordinates_json, make_tracks, read_tracks, scale_path, touches
from magdiff_core.motion.trajectories import parse_trajectories

H, W = 40, 60


def track(*places: tuple[float, float]) -> torch.Tensor:
    """`[F, 1, 2]`."""
    return torch.tensor(places)[:, None]


def seen(path: torch.Tensor) -> torch.Tensor:
    return torch.ones(path.shape[:2], dtype=torch.bool)


def maps(path: torch.Tensor, visibility=None) -> torch.Tensor:
    return displacements(path, seen(path) if visibility is None else visibility, H, W)


def test_a_move_to_a_pixel_centre_is_one_pixel_row_first():
    got = maps(track((10.5, 20.5), (13.5, 18.5)))
    assert got.shape == (2, 2, H, W)
    assert got.nonzero().tolist() == [[1, 0, 18, 13], [1, 1, 18, 13]]
    assert got[1, :, 18, 13].tolist() == [-2.0, 3.0]


def test_fractions_are_shared_and_nothing_gets_lost():
    got = maps(track((10.5, 20.5), (13.75, 18.5)))
    torch.testing.assert_close(got[1, 1, 18, 13:15], torch.tensor([0.75, 0.25]) * 3.25)
    torch.testing.assert_close(got[1].sum((-1, -2)), torch.tensor([-2.0, 3.25]))


def test_the_first_move_is_as_long_as_the_others():
    path = track(*[(5.5 + 2 * i, 20.5) for i in range(6)])
    got = maps(path)[:, 1].amax((-1, -2))
    assert got.tolist() == [0, 2, 2, 2, 2, 2]


def test_half_a_pixel_of_shift_moves_the_map_by_half_a_pixel():
    centre = []
    for shift in (0.0, 0.5):
        got = spread(maps(track((20.5 + shift, 20.5), (30.5 + shift, 20.5))))[1, 1]
        centre.append(float((got * torch.arange(W)).sum() / got.sum()))
    # the picture's sides cut the filter, so a little less than 0.5
    assert centre[1] - centre[0] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("end", [(-3.0, 20.5), (W + 4.0, 20.5), (30.5, -9.0), (30.5, H + 2.0)])
def test_nothing_wraps_around_and_nothing_is_written_outside(end):
    assert maps(track((30.5, 20.5), end)).abs().sum() == 0
    wrapped = reference.displacements(track((30.5, 20.5), (-3.0, 20.5)), H, W, clip=False)
    assert wrapped[1, 1, 20, W - 3] == -33.5, "what the released scripts do"


def test_a_point_on_the_border_keeps_its_share_inside():
    got = maps(track((10.5, 20.5), (0.25, 20.5)))
    torch.testing.assert_close(got[1, 1, 20, 0], torch.tensor(-10.25 * 0.75))


def test_two_tracks_on_a_pixel_are_averaged_not_overwritten():
    a, b = track((10.5, 20.5), (14.5, 20.5)), track((20.5, 20.5), (14.5, 20.5))
    both = maps(torch.cat((a, b), 1))
    assert both[1, 1, 20, 14] == -1.0
    torch.testing.assert_close(maps(torch.cat((a, a), 1)), maps(a))
    torch.testing.assert_close(both, maps(torch.cat((b, a), 1)))


def test_an_invisible_point_leaves_no_mark():
    path = track((10.5, 20.5), (12.5, 20.5), (14.5, 20.5), (16.5, 20.5))
    got = maps(path, torch.tensor([[True], [True], [False], [True]]))
    assert got.abs().amax((1, 2, 3)).tolist() == [0, 2, 0, 0]


def test_no_tracks_and_single_frames():
    assert maps(torch.zeros(3, 0, 2)).shape == (3, 2, H, W)
    assert maps(track((1.0, 1.0))).abs().sum() == 0


def test_the_filter_spreads_with_a_peak_of_one():
    got = motion_map(track((30.5, 20.5), (31.5, 24.5)), torch.ones(2, 1, dtype=torch.bool), H, W)[1]
    for row, column in ((24, 31), (20, 33), (39, 50), (0, 10)):
        weight = math.exp(-((row - 24) ** 2 + (column - 31) ** 2) / 200)
        torch.testing.assert_close(got[:, row, column], torch.tensor([4.0, 1.0]) * weight, atol=1e-5, rtol=1e-4)
    far = spread(maps(track((1.5, 1.5), (2.5, 1.5))))[1, 1]
    assert far[1, 2 + 25] > 0
    assert far[1, 2 + 26] == 0, "51 pixels wide"


def drawn(*regions: dict, size=(8, 6), frames=3):
    data = {"v": 1, "size": list(size), "fps": 8, "frames": frames, "regions": list(regions)}
    return parse_trajectories(json.dumps({**data, "size": [max(8, size[0]), max(8, size[1])]}))


def shape(kind: str, *points: tuple[float, float], **more) -> dict:
    return {"shape": kind, "points": [{"u": u, "v": v} for u, v in points], **more}


def test_a_rectangle_covers_the_pixels_whose_centres_it_holds():
    found = region_mask(drawn(shape("rectangle", (0.75, 0.25), (0.25, 1.0))).regions[0], 4, 8)
    assert found.int().tolist() == [[0] * 8, *[[0, 0, 1, 1, 1, 1, 0, 0]] * 3]


def test_an_ellipse_has_the_area_of_an_ellipse():
    found = region_mask(drawn(shape("ellipse", (0.1, 0.2), (0.9, 0.8))).regions[0], 200, 300)
    assert float(found.sum()) == pytest.approx(math.pi * 120 * 60, rel=0.005)
    assert not found[41, 32]


def test_a_polygon_that_is_not_convex_and_a_star_have_holes_where_they_should():
    # a C, open to the right
    c = [(0, 0), (1, 0), (1, 0.25), (0.25, 0.25), (0.25, 0.75), (1, 0.75), (1, 1), (0, 1)]
    found = region_mask(drawn(shape("polygon", *c)).regions[0], 8, 8)
    assert found.int().tolist() == [[1] * 8] * 2 + [[1, 1] + [0] * 6] * 4 + [[1] * 8] * 2


def test_a_triangle_in_both_directions():
    corners = [(0, 0), (1, 0), (0, 1)]
    one = region_mask(drawn(shape("polygon", *corners)).regions[0], 64, 64)
    other = region_mask(drawn(shape("polygon", *corners[::-1])).regions[0], 64, 64)
    assert torch.equal(one, other)
    assert float(one.sum()) == pytest.approx(32 * 64, rel=0.03)


def test_masks_of_several_regions_and_their_union():
    scene = drawn(shape("rectangle", (0, 0), (0.5, 0.5)), shape("rectangle", (0.25, 0.25), (0.75, 0.75)))
    one, other = masks = edit_masks(scene)
    assert one.shape == (3, 8, 8)
    assert (float(one[0].sum()), float(other[0].sum())) == (16, 16)
    together = union(masks, 3, 8, 8)
    assert together.shape == (3, 8, 8)
    assert float(together[2].sum()) == 28
    assert float(union([], 3, 8, 8).sum()) == 0


def test_a_region_outside_of_the_picture_is_refused():
    with pytest.raises(ValueError, match=r"region 0 \(sky\) covers no pixel of a picture of 8x8"):
        edit_masks(drawn(shape("rectangle", (1.2, 0), (1.5, 0.5), name="sky")))


def test_tracks_go_out_and_come_back():
    path, visibility = torch.rand(5, 3, 2) * 50, torch.rand(5, 3) > 0.5
    got = read_tracks(make_tracks(path, visibility))
    assert torch.equal(got[0], path)
    assert torch.equal(got[1], visibility)


def test_one_column_of_visibility_serves_all_tracks():
    _, visibility = read_tracks({"track_path": torch.rand(3, 4, 2), "track_visibility": torch.tensor([[1], [0], [1]])})
    assert visibility.tolist() == [[True] * 4, [False] * 4, [True] * 4]


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        (None, ["track_path", "missing"]),
        ({"track_path": torch.rand(5, 2)}, ["[5, 2]", "[frames, points, 2]"]),
        ({"track_path": torch.rand(5, 3, 2), "track_visibility": torch.ones(4, 3)}, ["[4, 3]", "[5, 3] or [5, 1]"]),
        ({"track_path": torch.full((5, 3, 2), float("nan"))}, ["30 positions", "NaN"]),
        ({"track_path": torch.rand(7, 3, 2)}, ["7 frames", "the clip 5"]),
    ],
)
def test_tracks_that_are_refused(tracks, words):
    with pytest.raises(ValueError) as caught:
        read_tracks(tracks, "tracks", frames=5)
    assert all(word in str(caught.value) for word in words), caught.value


def test_unseen_positions_may_be_anything():
    path = torch.rand(5, 1, 2)
    path[2] = float("nan")
    visibility = torch.ones(5, 1)
    visibility[2] = 0
    got, seen = read_tracks({"track_path": path, "track_visibility": visibility})
    assert torch.isfinite(got).all()
    assert not seen[2, 0]


def test_positions_scale_with_the_picture():
    assert scale_path(track((10.0, 20.0)), (100, 50), (200, 25)).tolist() == [[[20.0, 10.0]]]


def test_which_tracks_touch_the_picture():
    path = torch.cat((track((-5.0, 5.0), (5.0, 5.0)), track((-5.0, 5.0), (70.0, 5.0)), track((5.0, 5.0), (5.0, 5.0))), 1)
    visibility = torch.tensor([[True, True, False], [True, True, False]])
    assert touches(path, visibility, W, H).tolist() == [True, False, False]


def test_coordinates_for_other_nodes():
    got = json.loads(coordinates_json(torch.tensor([[[1.0, 2.25], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])))
    assert got == [[{"x": 1.0, "y": 2.25}, {"x": 5.0, "y": 6.0}], [{"x": 3.0, "y": 4.0}, {"x": 7.0, "y": 8.0}]]
