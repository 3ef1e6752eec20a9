"""The released scripts' trajectories and maps, against results of the scripts themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magdiff_core.motion import reference
from magdiff_core.motion.motion_map import gaussian_line

FILE = Path(__file__).parent / "fixtures" / "revideo_control.safetensors"
SHOWN = [0, 1, 2, 7, 13]
FRAMES = 14


@pytest.fixture(scope="module")
def stored():
    return {key: value for key, value in load_file(FILE).items() if key.startswith("C.")}


@pytest.fixture(scope="module")
def meta():
    return json.loads(FILE.with_suffix(".json").read_text())["meta"]


def lines(case: dict, positions=reference.line_positions) -> torch.Tensor:
    """All tracks of a case `[F, N, 2]`."""
    args, sizes = case["args"], (case["orig_wh"], case["work_wh"])
    count = len(args["ps_h"])
    x_bias, y_bias = ([args[f"{a}_bias"]] * count if f"{a}_bias" in args else args[f"{a}_bias_all"] for a in "xy")
    tracks = []
    for index in range(count):
        start, end = (reference.scaled_point((args[f"{p}_h"][index], args[f"{p}_w"][index]), *sizes) for p in ("ps", "pe"))
        tracks.append(positions(start, end, FRAMES, x_bias[index], y_bias[index]))
    return torch.stack(tracks, 1)


def check_displacements(maps: torch.Tensor, stored: dict, name: str) -> None:
    places = maps.nonzero()
    indices, values = stored[f"{name}.delta_indices"].tolist(), stored[f"{name}.delta_values"].tolist()
    order = {tuple(place): value for place, value in zip(indices, values)}
    found = {(c, f, y, x): float(maps[f, c, y, x]) for f, c, y, x in places.tolist()}
    assert found.keys() == order.keys()
    assert max(abs(found[key] - order[key]) for key in order) <= 1e-6


@pytest.mark.parametrize("name", ["single", "single2"])
def test_drawn_lines(stored, meta, name):
    case = meta[f"C.{name}"]
    width, height = case["work_wh"]
    path = lines(case)
    check_displacements(reference.displacements(path, height, width, clip=False), stored, f"C.{name}")
    drawn = lines(case, reference.drawn_positions)
    torch.testing.assert_close(drawn[None].float(), stored[f"C.{name}.tracks_drawn"])


@pytest.mark.parametrize("name", ["single", "multi"])
def test_filtered_maps_of_lines(stored, meta, name):
    case = meta[f"C.{name}"]
    width, height = case["work_wh"]
    got = reference.motion_map(lines(case), height, width, clip=False)[SHOWN]
    torch.testing.assert_close(got, stored[f"C.{name}.flow_sel"], atol=1e-4, rtol=0)


def test_constant_motion(stored, meta):
    width, height = meta["C.constant"]["work_wh"]
    path = stored["C.constant.tracks_xy"][0]
    check_displacements(reference.displacements(path, height, width), stored, "C.constant")
    got = reference.motion_map(path, height, width)[SHOWN]
    torch.testing.assert_close(got, stored["C.constant.flow_sel"], atol=1e-4, rtol=0)


def test_the_filter_is_separable_with_a_peak_of_one(stored):
    line = gaussian_line()
    torch.testing.assert_close(torch.outer(line, line), stored["C.gauss_kernel"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["single", "multi"])
def test_regions(stored, meta, name):
    case = meta[f"C.{name}"]
    (ow, oh), (width, height) = case["orig_wh"], case["work_wh"]
    args = {key: value if isinstance(value, list) else [value] for key, value in case["args"].items()}
    found = torch.zeros(height, width)
    for left, right, top, bottom in zip(args["s_h"], args["e_h"], args["s_w"], args["e_w"]):
        (x0, y0), (x1, y1) = (reference.scaled_point(p, (ow, oh), (width, height)) for p in ((left, top), (right, bottom)))
        found = torch.maximum(found, reference.rectangle(x0, y0, x1, y1, width, height))
    assert torch.equal(found, stored[f"C.{name}.region_frame0"].float())


def test_the_order_of_the_channels_shows(stored, meta):
    width, height = meta["C.constant"]["work_wh"]
    got = reference.motion_map(stored["C.constant.tracks_xy"][0], height, width)[SHOWN].flip(1)
    assert (got - stored["C.constant.flow_sel"]).abs().max() > 0.1
