"""The driver against ComfyUI's real page: a dropped workflow runs, and what goes wrong is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import driver

pytestmark = [pytest.mark.browser, pytest.mark.server]


def workflow_file(folder: Path, kind: str = "EmptyImage") -> Path:
    """A workflow of two core nodes as the page saves it."""
    nodes = [
        {"id": 1, "type": kind, "pos": [100, 150], "size": [270, 130], "widgets_values": [32, 24, 1, 255],
         "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]},
        {"id": 2, "type": "PreviewImage", "pos": [450, 150], "size": [240, 250], "widgets_values": [],
         "inputs": [{"name": "images", "type": "IMAGE", "link": 1}], "outputs": []},
    ]  # fmt: skip
    for number, node in enumerate(nodes):
        node.update(flags={}, order=number, mode=0, properties={"Node name for S&R": node["type"]})
    content = {"last_node_id": 2, "last_link_id": 1, "nodes": nodes, "links": [[1, 1, 0, 2, 0, "IMAGE"]],
               "groups": [], "config": {}, "extra": {}, "version": 0.4}  # fmt: skip
    file = folder / "two nodes.json"
    file.write_text(json.dumps(content), "utf-8")
    return file


@pytest.mark.parametrize("new_renderer", [False, True])
def test_a_dropped_workflow_runs(server, page, tmp_path, new_renderer):
    driver.use_new_renderer(page, new_renderer)
    try:
        assert sorted(driver.drop_workflow(page, workflow_file(tmp_path))) == ["EmptyImage", "PreviewImage"]
        driver.set_widget(page, "EmptyImage", "width", 48 if new_renderer else 40)
        entry = server.history(driver.press_run(page))
    finally:
        driver.use_new_renderer(page, False)
    assert entry["status"]["status_str"] == "success" and len(server.files(entry)) == 1


def test_an_unknown_node_is_noticed(page, tmp_path):
    with pytest.raises(AssertionError, match="does not know.*NobodyHasThis"):
        driver.drop_workflow(page, workflow_file(tmp_path, "NobodyHasThis"))


def test_all_our_nodes_can_be_added(page):
    kinds = page.evaluate("() => Object.keys(LiteGraph.registered_node_types).filter(type => type.startsWith('MagDiff'))")
    assert len(kinds) >= 8
    missing = page.evaluate("kinds => kinds.filter(kind => !app.graph.add(LiteGraph.createNode(kind)))", kinds)
    assert not missing
