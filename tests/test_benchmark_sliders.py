"""The sweep over alpha_text and alpha_image: what is measured where, and its picture. Nothing is sampled."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from benchmarks import heat_map
from benchmarks.heat_map import Cell, HeatMap, Strip, colour_of, draw_heat_maps
from benchmarks.mini import rows as table
from benchmarks.mini import sliders
from benchmarks.mini.cases import make_cases


@pytest.fixture(scope="module")
def cases():
    return make_cases(2, 3)


@pytest.fixture(scope="module")
def swept(cases):
    """True clips where the text is on, the source (right subject, wrong motion and background) where it is off."""
    asked = []

    def make(case, seed, point):
        asked.append((point, seed))
        return case.target if point[1] else case.source

    points = [*sliders.corners(), (1.0, 0.0, 1.0), *sliders.tokens_alone()]
    return sliders.sweep(make, cases, 10, points, lambda done, count: None), asked


def test_all_cells_but_the_empty_one_are_measured():
    points = sliders.points()
    assert len(set(points)) == len(points) == (len(sliders.ALPHA_TEXT) + 1) * len(sliders.ALPHA_IMAGE) - 1
    assert all(text or image for _, text, image in points) and set(sliders.corners()) <= set(points)


def test_every_cell_has_the_same_cases_and_noises(swept):
    rows, asked = swept
    assert asked == [(point, seed) for point in rows for seed in (10, 11)]


def test_what_a_cell_says(swept):
    rows, _ = swept
    cells = {(entry["pyramid_strength"], entry["alpha_text"], entry["alpha_image"]): entry for entry in sliders.summary(rows)}
    followed, ignored = cells[1.0, 1.0, 1.0], cells[1.0, 0.0, 1.0]
    assert (followed["text_following"]["mean"], followed["nearest"]["mean"]) == (1.0, 1.0)
    assert (ignored["text_following"]["mean"], ignored["nearest"]["mean"]) == (0.0, 1.0)
    text, subject = sliders.heat_maps(rows)
    assert text.cells[1.0, 1.0] == Cell(1.0, "100 / 100") and text.cells[0.0, 1.0] == Cell(0.0, "0 / 0")
    assert subject.cells[0.0, 1.0].share == 1.0 and (0.0, 0.0) not in subject.cells


def test_text_following_is_the_mean_of_two_hits_and_its_error_is_over_clips():
    row = table.Row(motion=[1, 1, 1, 0], background=[1, 0, 1, 0])
    assert sliders.text_following(row) == pytest.approx(5 / 8)
    # clips: 1, 1/2, 1, 0
    assert sliders.text_error(row) == pytest.approx(math.sqrt((0.375**2 * 2 + 0.125**2 + 0.625**2) / 3 / 4))
    assert math.isnan(sliders.text_error(table.Row(motion=[1], background=[1])))


def test_strip_shows_the_given_subject_and_the_corners(swept, cases):
    rows, _ = swept
    given, *corners = sliders.strips(rows, cases[0])
    assert torch.equal(given.frames[0], cases[0].source[0] * cases[0].source_mask[0, ..., None])
    assert [corner.title.startswith("alpha_text 0,") for corner in corners] == [True, False, False, False]
    assert torch.equal(corners[0].frames, cases[0].source[list(sliders.SHOWN_FRAMES)])


def test_caption_tells_what_the_maps_do_not(swept, cases):
    rows, _ = swept
    first, second, third = sliders.caption(rows, cases, 7)
    assert first.startswith("2 held-out clips a cell (seed 7)") and "text 11 %, subject 12.5 %" in first
    error = rows[0.0, 1.0, 1.0].mean("subject_rmse")
    assert second.endswith(f"alpha_image 0 / 1 / 3: subject 100 / 100 / 100 %, RMSE {error:.3f} / {error:.3f} / {error:.3f}.")
    assert cases[0].prompt in third


def test_the_colours_of_cells_tell_their_shares(tmp_path):
    """alpha_image grows upwards, alpha_text to the right; a place without a cell stays white."""
    maps = [HeatMap("map", ("text", (0, 1)), ("image", (0, 1)), {(1, 0): Cell(0.0), (0, 1): Cell(1.0), (1, 1): Cell(0.5)})]
    frame = torch.zeros(1, 64, 64, 3)
    frame[..., 1] = 1
    draw_heat_maps([maps], [Strip("frame", frame)], ["a line"], tmp_path / "maps.png")
    picture = Image.open(tmp_path / "maps.png")

    def at(column, row):
        x = heat_map.LEFT + column * heat_map.CELL_WIDTH + 4
        return "#{:02x}{:02x}{:02x}".format(*picture.getpixel((x, heat_map.TOP + row * heat_map.CELL_HEIGHT + 4)))

    assert at(0, 0) == colour_of(1.0) and at(1, 0) == colour_of(0.5) and at(1, 1) == colour_of(0.0)
    assert at(0, 1) == "#ffffff"
    below = maps[0].size[1] + 6 + 18 + heat_map.TILE // 2
    assert picture.getpixel((heat_map.GAP + heat_map.TILE // 2, below)) == (0, 255, 0)


def test_colours_fall_with_the_share_and_are_held_at_the_ends():
    brightness = [sum(bytes.fromhex(colour_of(share / 10)[1:])) for share in range(11)]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 11
    assert colour_of(1.2) == colour_of(1.0) and colour_of(-1) == colour_of(0.0)
