"""A real ComfyUI server for the tests: its own temporary base directory, our pack, a free loopback port."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow_checks import upload_pictures

from dev.client import ComfyClient
from dev.server import ComfyServer, make_base

ROOT = Path(__file__).resolve().parent.parent


def comfyui_folder() -> Path:
    """The ComfyUI tree that these tests run with: COMFYUI_PATH, else the one on the search path."""
    places = [os.environ.get("COMFYUI_PATH"), *sys.path]
    for place in filter(None, places):
        if (Path(place) / "main.py").is_file() and (Path(place) / "comfy" / "sd.py").is_file():
            return Path(place).resolve()
    raise RuntimeError("no ComfyUI found: run the tests with `python dev.py test`, or set COMFYUI_PATH")


def make_tree(path: Path, version: str | None = "9.9.9", main: str = "") -> Path:
    """Files that look like a ComfyUI tree to dev.py; `main` is what its main.py does."""
    (path / "comfy").mkdir(parents=True)
    (path / "nodes.py").write_text("WHOSE = 'ComfyUI'\n", "utf-8")
    (path / "main.py").write_text(main, "utf-8")
    (path / "requirements.txt").write_text("", "utf-8")
    if version:
        (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n', "utf-8")
    return path


def server_environment() -> dict[str, str]:
    """Variables for a server: those of this process, without what only the tests need on their search path."""
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    env.pop("PYTHONSAFEPATH", None)
    ours = {ROOT, comfyui_folder()}
    entries = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if Path(entry).resolve() not in ours)
    return env


class RunningServer(ComfyClient):
    """A started server: the client's methods (object_info, queue, upload_image, view, ...) plus its folders, log and start."""

    def __init__(self, base: Path, pack: Path | None = ROOT, options: Sequence[str] = ()) -> None:
        """Start one with the base directory `base` and `pack` as its only node pack (None: what lies there already).

        Raises DevError with the log's end when it does not start, AssertionError when any node file failed to import.
        """
        self.started = time.time()
        self.base = make_base(base, pack)
        python = os.environ.get("MAGDIFF_SERVER_PYTHON", sys.executable)
        options = ["--cpu", "--disable-api-nodes", *options]
        self.server = ComfyServer(comfyui_folder(), python, server_environment(), self.base, options=options).start()
        super().__init__(self.server.url)
        failed = [line for line in self.log_text().splitlines() if "IMPORT FAILED" in line]
        if failed:
            self.stop()
            raise AssertionError("\n".join(failed))

    def log_text(self) -> str:
        """Everything that the server has written to its log so far, without colour codes."""
        return self.server.log_end(1_000_000)

    def queue(
        self, prompt: dict[str, Any], on_event: Callable[[str, dict[str, Any]], None] = lambda kind, data: None,
        patience: float = 300.0,
    ) -> dict[str, Any]:  # fmt: skip
        """As :meth:`ComfyClient.queue`; when the server died, the error shows the end of its log."""
        try:
            return super().queue(prompt, on_event, patience)
        except ConnectionError:
            self.server.check_alive()
            raise

    def stop(self) -> None:
        self.server.stop()


@contextmanager
def server_with_models(base: Path, write: Callable[[Path], object], options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """A server whose folder `models` was filled by `write`, and that has the example pictures.

    The folder is removed at the end: pytest keeps its temporary folders, and model files are large.
    """
    models = base / "models"
    try:
        write(models)
        running = RunningServer(base, options=options)
        try:
            upload_pictures(running)
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(models, ignore_errors=True)
