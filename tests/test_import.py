"""What the pack does to ComfyUI's start, and what must hold of the files that users get."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys

import pytest
from comfy_server import ROOT

from benchmarks.start import start

NODE_IDS = {
    "MagDiffLoadCheckpoint", "MagDiffApplyAdapter", "MagDiffSubjectSegment", "MagDiffEncodeSubjectTokens",
    "MagDiffAPAConditioning", "MagDiffHFAPyramidEncode", "MagDiffSampler", "MagDiffKeepRegion",
}  # fmt: skip
# declared or brought by ComfyUI, but too slow or too uncertain to be imported when ComfyUI starts
LAZY = (
    "cv2", "segment_anything", "kornia", "transformers", "av", "scipy", "skimage", "torchvision", "diffusers", "spacy",
)  # fmt: skip
SHIPPED = [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "magdiff_core").rglob("*.py"))]


@pytest.fixture(scope="module")
def loaded():
    return start(ROOT)


def test_all_nodes_are_there(loaded):
    assert loaded.nodes >= NODE_IDS


def test_import_brings_in_nothing_heavy(loaded):
    heavy = {name.split(".")[0] for name in loaded.modules} & set(LAZY)
    assert not heavy, f"imported when ComfyUI starts: {heavy}"


def test_missing_optional_libraries_and_the_folders_name_do_not_matter(tmp_path):
    place = tmp_path / "My pack-1.0 ü"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "tests", "output", "models", "__pycache__"))
    blocked = ("cv2", "segment_anything", "kornia", "av", "skimage", "diffusers", "spacy")
    assert start(place, blocked).nodes >= NODE_IDS


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_shipped_code_keeps_to_the_registry_rules(file):
    """No network, no processes, no eval or exec, no pickle, no print, nothing lazy imported at the top."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            forbidden = ("subprocess", "socket", "urllib", "requests", "http", "aiohttp", "ftplib", "ctypes")
            assert name.split(".")[0] not in forbidden, f"line {node.lineno} imports {name}"
            # the name of its error is all that may be used of pickle
            assert not (isinstance(node, ast.ImportFrom) and name == "pickle"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError", f"line {node.lineno}: pickle.{node.attr}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "print", "__import__"), f"line {node.lineno}"
            if called == "torch.load":
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert options.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            tops = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else {module.split(".")[0]}
            assert not (tops & set(LAZY)) or getattr(node, "level", 0), f"line {node.lineno} imports {tops} at the top"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_only_the_host_and_the_nodes_know_comfyui(file):
    """comfy.* is imported by magdiff_core/host alone; nodes may use comfy_api and folder_paths."""
    room = file.relative_to(ROOT).as_posix()
    if room.startswith("magdiff_core/host/"):
        return
    allowed = {"comfy_api", "folder_paths"} if room.startswith("nodes/") or room == "__init__.py" else set()
    known = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "execution", "server", "node_helpers", "latent_preview"}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        wrong = {name.split(".")[0] for name in names} & (known - allowed)
        assert not wrong, f"{room} line {node.lineno} imports {wrong}"


def test_ruff_is_clean():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
