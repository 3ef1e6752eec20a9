"""The trajectory string: what it may hold, and what is refused with which words."""

from __future__ import annotations

import json

import pytest

from magdiff_core.motion.trajectories import EMPTY, Knot, parse_trajectories

POINTS = [{"u": 0.25, "v": 0.5}, {"u": 0.75, "v": 0.5}]


def text(tracks=(), regions=(), **changes) -> str:
    data = {"v": 1, "size": [64, 48], "fps": 8, "frames": 5, "regions": list(regions), "tracks": list(tracks)}
    return json.dumps({**data, **changes})


def track(**changes) -> dict:
    return {"points": POINTS, **changes}


def region(**changes) -> dict:
    return {"shape": "rectangle", "points": POINTS, **changes}


def test_everything_that_a_string_may_hold():
    full = track(
        points=[{"u": 0.1, "v": 0.2, "t": 0.5, "ui": {"handle": 1}}, {"u": -0.5, "v": 1.5}, {"u": 1, "v": 0}],
        end=0.75,
        curve="smooth",
        ease="in_out",
        visible=[[0, 0.25], [0.5, 1]],
        name="tail",
        color="#20c0ff",
        ui={"locked": True},
    )
    polygon = region(shape="polygon", points=[*POINTS, {"u": 0.5, "v": 0.9}], name="dog", color="#ff0000")
    drawn = parse_trajectories(text([full], [polygon, region(enabled=False)], ui={"zoom": 2}))
    assert (drawn.width, drawn.height, drawn.fps, drawn.frames) == (64, 48, 8.0, 5)
    (only,) = drawn.tracks
    assert only.knots == (Knot(0.1, 0.2, 0.5), Knot(-0.5, 1.5, None), Knot(1.0, 0.0, 0.75))
    assert (only.curve, only.ease, only.visible) == ("smooth", "in_out", ((0.0, 0.25), (0.5, 1.0)))
    assert (only.name, only.color) == ("tail", "#20c0ff")
    assert [(r.shape, r.name, len(r.points)) for r in drawn.regions] == [("polygon", "dog", 3)]


def test_what_is_left_out_has_plain_values():
    (only,) = parse_trajectories(text([track()])).tracks
    assert [knot.t for knot in only.knots] == [0.0, 1.0]
    assert (only.curve, only.ease, only.visible) == ("line", "linear", ((0.0, 1.0),))
    assert parse_trajectories(json.dumps({"v": 1, "size": [64, 48], "fps": 8, "frames": 5})).tracks == ()
    assert parse_trajectories(EMPTY).frames == 14


def test_a_track_that_is_not_enabled_is_left_out():
    assert parse_trajectories(text([track(enabled=False), track(name="b")])).tracks[0].name == "b"


@pytest.mark.parametrize(
    ("string", "words"),
    [
        ("{", ["not valid JSON", '"v": 1']),
        (None, ["not valid JSON"]),
        ("[]", ["JSON object", "list"]),
        ('{"size": [1, 1]}', ['no version ("v")']),
        (text(v=2), ["version 2", "version 1", "update"]),
        (text(other=1), ["'other'", "known: v, size"]),
        (text(size=[64]), ['"size"', "[width, height]"]),
        (text(size=[64, 4]), ["height", "4", "from 8 to 16384"]),
        (text(size=[64.5, 48]), ["width", "64.5", "whole number"]),
        (text(fps=0), ['"fps" is 0']),
        (text(frames=0), ['"frames" is 0', "from 1"]),
        (text(frames=True), ['"frames" is True']),
        (text(tracks="x").replace('["x"]', '"x"'), ['"tracks" must be a list']),
        (text(["x"]), ["tracks[0] must be an object"]),
        (text([track(), {}]), ["tracks[1]", '"points" must be a list']),
        (text([track(points=[])]), ["tracks[0] has no points"]),
        (text([track(points=[{"u": 0.5}])]), ["tracks[0].points[0]", '"v" is None']),
        (text([track(points=[{"u": 310, "v": 200}])]), ["points[0]", '"u" is 310', "not a number of pixels"]),
        (text([track(points=[{"u": 0.5, "v": 0.5, "x": 3}])]), ["'x'", "known: u, v, t"]),
        (text([track(points=[{"u": 0.5, "v": 0.5, "t": 12}])]), ['"t" is 12', "from 0 to 1"]),
        (text([track(curv="smooth")]), ["tracks[0]", "'curv'"]),
        (text([track(curve="bezier")]), ['"curve" is \'bezier\'', "line, smooth"]),
        (text([track(ease="bounce")]), ['"ease" is \'bounce\'']),
        (text([track(visible=[0, 1])]), ['"visible"', "[from, to]"]),
        (text([track(visible=[[0.5, 0.2]])]), ["ends before it starts"]),
        (text([track(start=0.5, end=0.5)]), ["times must grow", "0.5, 0.5"]),
        (text([track(points=[{"u": 0, "v": 0, "t": 0.2}, {"u": 1, "v": 1}], start=0.1)]), ['"start" is 0.1', '"t" 0.2']),
        (text([track(enabled=1)]), ['"enabled" is 1']),
        (text([track(name=5)]), ['"name" is 5']),
        (text([track(color="red")]), ['"color"', "#20c0ff"]),
        (text(regions=[region(shape=None)]), ['"shape" is None', "rectangle, ellipse, polygon"]),
        (text(regions=[region(shape="polygon")]), ["polygon of 2 points", "3 or more"]),
        (text(regions=[region(points=POINTS[:1])]), ["rectangle of 1 points", "2 opposite corners"]),
        (text(regions=[region(curve="line")]), ["regions[0]", "'curve'"]),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(string, words):
    with pytest.raises(ValueError) as caught:
        parse_trajectories(string)
    assert str(caught.value).startswith("trajectories")
    for word in words:
        assert word in str(caught.value)
