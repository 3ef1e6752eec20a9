"""What users get from the registry: the metadata, and the archive that `comfy node pack` makes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from comfy_server import ROOT, RunningServer

from dev import comfyui, workflow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]


# -- metadata: the registry's rules, which `comfy node validate` does not check all ---------------------------------


def test_name_and_version():
    name = PROJECT["name"]
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,98}", name) and "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])


def test_licence_is_a_table_and_the_file_is_gpl_3():
    assert PROJECT["license"] == {"file": "LICENSE"}
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in text and "Version 3, 29 June 2007" in text and len(text) > 30000


def test_requirements_agree_with_the_declared_dependencies():
    assert (ROOT / "requirements.txt").read_text("utf-8").split() == PROJECT["dependencies"]


def test_nothing_is_declared_that_comfyui_brings():
    # a second declaration with other bounds is what breaks users' environments
    brought = {"torch", "numpy", "einops", "transformers", "safetensors", "kornia", "scipy", "pillow", "av", "aiohttp"}
    declared = {re.split(r"[<>=!~ \[;]", line)[0].lower() for line in PROJECT["dependencies"]}
    assert not declared & brought
    # no upper bounds and no exact pins either
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line) for line in PROJECT["dependencies"])


def test_registry_fields():
    assert PROJECT["requires-python"] == ">=3.10"
    assert PROJECT["urls"]["Repository"].startswith("https://github.com/")
    assert re.fullmatch(r"[a-z0-9-]+", COMFY["PublisherId"]) and COMFY["DisplayName"] == "MagDiff"
    assert re.search(r"\.(svg|png|jpg|gif)$", COMFY["Icon"]) and COMFY["Icon"].startswith("https://")
    assert (ROOT / COMFY["Icon"].split("/main/")[1]).is_file()
    # the floor is a version that `dev.py test --comfyui` can run
    assert COMFY["requires-comfyui"].removeprefix(">=") in [row.comfyui for row in comfyui.RELEASES]
    # together with WEB_DIRECTORY it would load every script twice
    assert "web" not in COMFY and "WEB_DIRECTORY" in (ROOT / "__init__.py").read_text("utf-8")


def test_classifiers_are_ones_that_comfyui_accepts(comfy_session):
    from comfy_config import config_parser

    classifiers = PROJECT["classifiers"]
    assert config_parser.validate_and_extract_os_classifiers(classifiers)
    assert config_parser.validate_and_extract_accelerator_classifiers(classifiers)
    assert config_parser.extract_node_configuration(str(ROOT)).project.name == PROJECT["name"]


# -- the registry's tools -------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Path of a command that was installed beside this Python; skips the test without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"SKIPPED: {name} is not installed here")
    return found


def project_files() -> list[Path]:
    """Files of the working copy that git tracks or would track, relative to its root."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode == 0:
        names = [Path(name.decode()) for name in listed.stdout.split(b"\0") if name]
    else:  # an export without git's folder
        left_out = {".dev", ".git", "output", "__pycache__", ".pytest_cache", ".ruff_cache"}
        names = [file.relative_to(ROOT) for file in ROOT.rglob("*") if not left_out & set(file.relative_to(ROOT).parts)]
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A fresh git repository with the files of the working copy; its folder's parent is the tools' home."""
    folder = tmp_path_factory.mktemp("registry") / "magdiff"
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    return folder


def run_tool(checkout: Path, *command: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "HOME": str(checkout.parent), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # these tools run in the same environment, but must not see ComfyUI's modules or ours
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        env.pop(name, None)
    env["PYTHONIOENCODING"] = "utf-8"
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, encoding="utf-8", timeout=120, check=False)


@pytest.fixture(scope="module")
def comfy(checkout) -> str:
    found = tool("comfy")
    run_tool(checkout, found, "--skip-prompt", "tracking", "disable")
    return found


def test_comfy_node_validate_is_clean(checkout, comfy):
    done = run_tool(checkout, comfy, "--skip-prompt", "node", "validate")
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "validation checks passed" in text, text
    # its exit status stays 0 when it finds exec or eval
    assert "warning" not in text.lower(), text


def test_comfy_test_lint_is_clean(checkout):
    done = run_tool(checkout, tool("comfy-test"), "lint")
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr


def test_code_holds_only_letters_that_every_windows_console_shows():
    """The one rule of that linter that is easily broken, also where the linter is not installed."""
    for name in project_files():
        if name.suffix == ".py":
            for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), 1):
                assert line.encode("cp1252", "replace").decode("cp1252") == line, f"{name.as_posix()}, line {number}"


@pytest.fixture(scope="module")
def archive(checkout, comfy) -> Path:
    done = run_tool(checkout, comfy, "--skip-prompt", "node", "pack")
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "node.zip"


def test_archive_holds_what_users_need_and_no_more(archive):
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    tops = {name.split("/")[0] for name in names}
    for needed in ("__init__.py", "nodes", "magdiff_core", "web", "models", "workflows"):
        assert needed in tops, f"{needed} is missing"
    assert "locales" in tops or not any((ROOT / "locales").glob("**/*.json"))
    for needed in ("LICENSE", "README.md", "pyproject.toml", "requirements.txt"):
        assert needed in names, f"{needed} is missing"
    unwanted = {"tests", "benchmarks", "dev", "dev.py", ".ci", ".github", ".dev", "output", "node.zip"} & tops
    assert not unwanted
    scripts = [name for name in names if re.search(r"\.(sh|bat|ps1|exe|mjs)$|(^|/)(test_|conftest)", name)]
    assert not scripts
    # every .js under web is loaded by the page, so none of them may be a tool or a test
    assert all(name.startswith("web/") for name in names if name.endswith(".js"))


@pytest.mark.server
def test_the_unpacked_archive_runs_the_generate_workflow(archive, tmp_path):
    """In a clean ComfyUI whose environment holds ComfyUI's own requirements and our declared ones."""
    base = tmp_path / "clean ComfyUI"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(base / "custom_nodes" / "magdiff")
    files = sorted((base / "custom_nodes" / "magdiff" / "workflows").glob("*generate*.json"))
    small = [file for file in files if "sd2" not in file.name.lower()]
    assert small, f"no generate workflow for the small model among {[file.name for file in files]}"
    running = RunningServer(base, pack=None)
    try:
        prompt = workflow.load(small[0], running.object_info())
        for node in prompt.values():  # few steps are enough to see that every part is there
            if "steps" in node["inputs"] and not isinstance(node["inputs"]["steps"], list):
                node["inputs"]["steps"] = 2
        for name in {n["inputs"]["image"] for n in prompt.values() if n["class_type"] == "LoadImage"}:
            running.upload_image(next(base.rglob(Path(name).name)), Path(name).name)
        entry = running.queue(prompt)
        made = running.files(entry)
        assert made and all(len(running.view(file)) > 100 for file in made)
    finally:
        running.stop()
