"""The example workflows for the small model in ComfyUI's page: dropped on the canvas, run by the button.

Those for Stable Diffusion 2.1 are in test_workflows_sd21.py, beside the server that has their files.
"""

from __future__ import annotations

import json

import pytest
import workflow_checks
from workflow_checks import as_prompt, check_clip, compare_with_page, saved_clip

pytestmark = [pytest.mark.server, pytest.mark.browser]
FRAMES, SIZE = 8, 64


@pytest.fixture(scope="module")
def pictures(server):
    """The example pictures in the server's input folder, before the page asks for its content."""
    workflow_checks.upload_pictures(server)


def run_in_page(server, page, name, screenshot, **sampler):
    """Drop the workflow, set these widgets of its sampler, press Run and check the clip that it saved."""
    from browser import driver

    types = driver.drop_workflow(page, workflow_checks.WORKFLOWS / f"{name}.json")
    assert sorted(types) == sorted(node["type"] for node in workflow_checks.read(name)["nodes"])
    assert page.get_by_text("Missing node").count() == 0
    ours = as_prompt(server, name)
    compare_with_page(ours, page.evaluate("async () => (await app.graphToPrompt()).output"), server.object_info())
    for widget, value in sampler.items():
        driver.set_widget(page, "MagDiffSampler", widget, value)
    entry = server.history(driver.press_run(page))
    assert entry["status"]["status_str"] == "success"
    page.wait_for_timeout(500)
    page.screenshot(path=str(screenshot))
    check_clip(saved_clip(server, ours, entry), FRAMES, SIZE)


@pytest.mark.parametrize("name", workflow_checks.SMALL)
def test_drop_run_and_see_the_clip(server, pictures, page, name, tmp_path):
    run_in_page(server, page, name, tmp_path / f"{name}.png", seed=5)


def test_the_same_in_the_new_renderer(server, pictures, page, tmp_path):
    from browser import driver

    name = "edit_small"  # it has the nodes of the other one, and more
    driver.use_new_renderer(page, True)
    try:
        run_in_page(server, page, name, tmp_path / f"{name}-new.png", seed=6, steps=5)
        drawn = page.locator("[data-node-id]").count()
        assert drawn >= len(workflow_checks.read(name)["nodes"]) / 2, f"the new renderer drew {drawn} nodes"
    finally:
        driver.use_new_renderer(page, False)


def test_the_saved_workflow_survives_the_page(pictures, page):
    """Loading a workflow and saving it again changes no widget, so nothing shifts for those who open it."""
    from browser import driver

    for name in workflow_checks.SMALL:
        driver.drop_workflow(page, workflow_checks.WORKFLOWS / f"{name}.json")
        saved = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))
        values = {node["id"]: node.get("widgets_values") or [] for node in saved["nodes"]}
        for node in workflow_checks.read(name)["nodes"]:
            assert values[node["id"]] == (node.get("widgets_values") or []), node["type"]


def test_help_and_translations_reach_the_page(server, page):
    """The help panel finds a page for each node; the server hands out our translations."""
    ours = [node for node in server.object_info() if node.startswith("MagDiff")]
    packs = {server.object_info()[node]["python_module"].removeprefix("custom_nodes.") for node in ours}
    assert len(packs) == 1
    pack = packs.pop()
    for node in ours:
        status, text = page.evaluate(
            "async path => { const reply = await fetch(path); return [reply.status, await reply.text()]; }",
            f"/extensions/{pack}/docs/{node}.md",
        )
        assert status == 200 and text.startswith("# "), node
    translations = server.get("/i18n")
    for language in ("en", "zh", "ja"):
        assert set(ours) <= set(translations[language]["nodeDefs"])
