"""What people read: help pages, tooltips, translations, README, pictures; and the promise that saved workflows keep working."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import frozen
import pytest
import workflow_checks
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "zh", "ja")


@pytest.fixture(scope="module")
def schemas(pack):
    return {name: node.GET_SCHEMA() for name, node in pack.items()}


def translations(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


def test_every_node_has_a_help_page_that_names_its_inputs(schemas):
    pages = {file.stem for file in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == set(schemas)
    for name, schema in schemas.items():
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
        assert text.startswith(f"# {schema.display_name}\n")
        missing = [entry.id for entry in schema.inputs if entry.id not in text]
        assert not missing, f"the help page of {name} does not name {missing}"


def test_every_node_tells_what_it_is(schemas):
    for name, schema in schemas.items():
        assert schema.description and schema.search_aliases, name
        assert schema.category.startswith("MagDiff/")
        for entry in [*schema.inputs, *schema.outputs]:
            assert entry.tooltip and entry.tooltip.rstrip().endswith((".", "]", ")")), f"{name}.{entry.id}: {entry.tooltip!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated(schemas, language):
    words = translations(language)
    assert words.keys() == schemas.keys()
    for name, schema in schemas.items():
        assert words[name]["display_name"]
        if language == "en":
            # only names: the page takes the rest from the nodes themselves, so nothing can go stale
            assert words[name] == {"display_name": schema.display_name}
            continue
        assert words[name]["description"]
        assert list(words[name]["inputs"]) == [entry.id for entry in schema.inputs], name
        assert list(words[name]["outputs"]) == [str(number) for number in range(len(schema.outputs))], name
        for entry in [*words[name]["inputs"].values(), *words[name]["outputs"].values()]:
            assert entry["name"] and entry["tooltip"]


def test_readme_names_every_node_command_and_example(schemas):
    text = (ROOT / "README.md").read_text("utf-8")
    for schema in schemas.values():
        assert f"**{schema.display_name}**" in text
    for words in ("python dev.py demo", "python dev.py test", *workflow_checks.ALL):
        assert words in text


def test_links_between_our_files_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", document.read_text("utf-8"))
        for link in filter(None, (first or second for first, second in links)):
            if not link.startswith("http"):
                assert (document.parent / link).is_file() or (document.parent / link).is_dir(), f"{document.name}: {link}"


def test_each_workflow_has_a_picture_and_only_core_and_own_nodes(schemas):
    files = {file.stem for file in workflow_checks.WORKFLOWS.glob("*.json")}
    assert files == set(workflow_checks.ALL)
    for name in files:
        with Image.open(workflow_checks.WORKFLOWS / f"{name}.jpg") as picture:
            assert min(picture.size) >= 200
        workflow = workflow_checks.read(name)
        for node in workflow["nodes"]:
            if node["type"] in ("Note", "MarkdownNote"):
                continue
            owner = node["properties"]["cnr_id"]
            assert owner == ("magdiff" if node["type"] in schemas else "comfy-core"), node["type"]
        assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"])
        assert workflow["groups"]
        loaded = workflow_checks.pictures(workflow)
        assert loaded and all(file.is_file() for file in loaded)


@pytest.mark.parametrize("name", workflow_checks.ALL)
def test_workflows_are_laid_out_to_be_read(name):
    """No two nodes cover each other, and every node but the note lies in one titled group."""
    workflow = workflow_checks.read(name)
    title_bar = 30
    # left, top, right, bottom; a node's position is that of its body, below the title
    boxes = {
        node["id"]: (x, y - title_bar, x + width, y + height)
        for node in workflow["nodes"]
        for (x, y), (width, height) in [(node["pos"], node["size"])]
    }
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"nodes {one} and {other} cover each other"
    groups = [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in workflow["groups"])]
    assert all(group["title"] for group in workflow["groups"])
    for node in workflow["nodes"]:
        left, top, right, bottom = boxes[node["id"]]
        around = [g for g in groups if g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3]]
        assert len(around) == (node["type"] != "MarkdownNote"), f"node {node['id']} ({node['type']}) lies in {len(around)} groups"


def test_workflows_tell_where_public_files_come_from():
    for name in workflow_checks.SD21:
        hinted = [
            (hint, node["widgets_values"][0])
            for node in workflow_checks.read(name)["nodes"]
            for hint in node["properties"].get("models", ())
        ]
        assert {hint["directory"] for hint, _ in hinted} == {"checkpoints", "clip_vision"}
        for hint, chosen in hinted:
            assert hint["name"] == chosen
            assert hint["url"].startswith("https://huggingface.co/") and hint["url"].endswith(".safetensors")


def test_workflows_hold_no_path_of_a_machine():
    for file in workflow_checks.WORKFLOWS.glob("*.json"):
        text = file.read_text("utf-8")
        assert "\\\\" not in text and not re.search(r"\"(/|[A-Z]:)", text), file.name


def test_nothing_frozen_was_changed(pack):
    stored = json.loads(frozen.FILE.read_text("utf-8"))
    current = {name: frozen.face(node) for name, node in pack.items()}
    broken = frozen.problems(stored, current)
    assert not broken, "\n".join([*broken, frozen.RULES])
    assert {name: current[name] for name in sorted(current)} == stored, f"something is new. {frozen.RULES}"


def test_the_frozen_check_sees_each_kind_of_break():
    stored = json.loads(frozen.FILE.read_text("utf-8"))
    node = "MagDiffAPAConditioning"

    def broken(change):
        current = copy.deepcopy(stored)
        change(current)
        return frozen.problems(stored, current)

    assert not broken(lambda nodes: None)
    assert broken(lambda nodes: nodes.pop(node))
    assert broken(lambda nodes: nodes[node]["inputs"].pop())
    assert broken(lambda nodes: nodes[node]["inputs"].reverse())
    assert broken(lambda nodes: nodes[node]["inputs"][0].update(type="MODEL"))
    assert broken(lambda nodes: nodes[node]["inputs"].append({"id": "new", "type": "INT", "optional": False}))
    assert not broken(lambda nodes: nodes[node]["inputs"].append({"id": "new", "type": "INT", "optional": True}))
    assert broken(lambda nodes: nodes[node]["inputs"][-1]["options"].remove("fixed"))
    assert broken(lambda nodes: nodes[node]["outputs"].pop(0))
    assert not broken(lambda nodes: nodes[node]["outputs"].append({"id": "new", "type": "INT"}))
