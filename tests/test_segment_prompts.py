"""Points, boxes and frame numbers as users and other nodes write them."""

from __future__ import annotations

import pytest

from magdiff_core.segment.prompts import centred_box, parse_boxes, parse_frame_numbers, parse_points

BOX = {"x": 10, "y": 20, "width": 30, "height": 40}
READ = (10.0, 20.0, 40.0, 60.0)


def test_points_in_the_form_of_core_sam3():
    assert parse_points('[{"x": 3, "y": 4.5}, {"x": 0, "y": 0}]', "positive_points", 64, 48) == ((3.0, 4.5), (0.0, 0.0))


@pytest.mark.parametrize("text", ["", "  ", None, "[]"])
def test_no_points(text):
    assert parse_points(text, "positive_points", 64, 48) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", ("negative_points", "not valid JSON")),
        ('{"x": 1, "y": 2}', ("must be a list", "dict")),
        ("[[1, 2]]", ("point 0", "[1, 2]")),
        ('[{"x": 1}]', ("point 0", '"y"')),
        ('[{"x": 1, "y": "left"}]', ("point 0",)),
        ('[{"x": NaN, "y": 2}]', ("point 0", "not finite")),
        ('[{"x": 1, "y": 2}, {"x": 64, "y": 2}]', ("point 1", "(64, 2)", "64x48")),
        ('[{"x": 1, "y": -1}]', ("(1, -1)", "outside the picture")),
    ],
)
def test_bad_points_are_named(text, words):
    with pytest.raises(ValueError) as caught:
        parse_points(text, "negative_points", 64, 48)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("value", "frames", "expected"),
    [
        (None, 5, {}),
        (BOX, 5, {0: (READ,)}),
        ([BOX], 5, {0: (READ,)}),
        ([BOX, BOX], 2, {0: (READ,), 1: (READ,)}),
        ([BOX, BOX], 1, {0: (READ, READ)}),
        ([[BOX], [], [BOX, BOX]], 3, {0: (READ,), 2: (READ, READ)}),
        ([[BOX]], 3, {0: (READ,)}),
    ],
)
def test_boxes_of_a_picture_and_of_a_clip(value, frames, expected):
    assert parse_boxes(value, "box", frames, 100, 100) == expected


def test_a_box_is_cut_to_the_picture():
    assert parse_boxes({"x": -5, "y": 80, "width": 20, "height": 90}, "box", 1, 100, 100) == {0: ((0.0, 80.0, 15.0, 100.0),)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([BOX] * 3, ("3 frames", "5")),
        ({"x": 1, "y": 2}, ("width",)),
        ({**BOX, "width": 0}, ("width 0", "above 0")),
        ({**BOX, "x": 200}, ("x 200", "outside the picture of 100x100")),
        ({**BOX, "x": float("nan")}, ("not finite",)),
        ([[], [], [], [], []], ("no box in any frame",)),
        ([BOX, [BOX]], ("mixes",)),
        ("10,20,30,40", ("str",)),
    ],
)
def test_bad_boxes_are_named(value, words):
    with pytest.raises(ValueError) as caught:
        parse_boxes(value, "box", 5, 100, 100)
    assert all(word in str(caught.value) for word in words)


def test_frame_numbers():
    assert parse_frame_numbers("12, 30", "correction_frames", 2, 31) == (12, 30)
    assert parse_frame_numbers("3 1", "correction_frames", 2, 4) == (3, 1)


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("12, x", 2, ("whole frame numbers",)),
        ("12", 2, ("names 1 frames", "2 correction masks")),
        ("", 1, ("names 0 frames",)),
        ("31", 1, ("frame 31", "0 to 30")),
        ("-1", 1, ("frame -1",)),
        ("4,4", 2, ("more than once",)),
    ],
)
def test_bad_frame_numbers_are_named(text, count, words):
    with pytest.raises(ValueError) as caught:
        parse_frame_numbers(text, "correction_frames", count, 31)
    assert all(word in str(caught.value) for word in words)


def test_centred_box_is_the_middle_80_percent():
    assert centred_box(200, 100) == pytest.approx((20, 10, 180, 90))
