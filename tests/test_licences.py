"""The licence table: whole, the same in README and in the loader's help page, and no file of a workflow without a row."""

from __future__ import annotations

import re
from pathlib import Path

import workflow_checks

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["file", "source", "folder", "licence of the weights", "commercial use"]


def table(document: str) -> dict[str, list[str]]:
    """File -> the other columns."""
    lines = (ROOT / document).read_text("utf-8").splitlines()
    start = lines.index("| " + " | ".join(COLUMNS) + " |")
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(COLUMNS) and all(cells), line
        rows[cells[0]] = cells[1:]
    return rows


def test_every_row_says_whether_commercial_use_is_allowed():
    for file, (_, folder, _, commercial) in table("README.md").items():
        assert re.match(r"(yes|no|unknown)\b", commercial), file
        assert "models/" in folder or folder == "comes with the pack", file


def test_the_loader_s_page_says_the_same():
    whole, loader = table("README.md"), table("web/docs/MagDiffLoadCheckpoint.md")
    assert len(loader) > 10 and loader.items() <= whole.items()


def test_files_that_workflows_hint_at_have_a_row():
    names = re.findall(r"`([^`]+)`|(CLIP-[\w-]+)", " ".join(table("README.md")))
    patterns = [re.escape(max(pair).removesuffix(".safetensors")).replace(r"\*", ".*") for pair in names]
    for name in workflow_checks.ALL:
        for node in workflow_checks.read(name)["nodes"]:
            for hint in node["properties"].get("models", ()):
                stem = hint["name"].removesuffix(".safetensors")
                assert any(re.fullmatch(pattern, stem) for pattern in patterns), f"{name}: {stem}"
