"""A ComfyUI server of our own: base directory, start, readiness, log, end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from .processes import WINDOWS, log_end, start_tree, stop_tree
from .report import DevError

HOST = "127.0.0.1"
PACK_NAME = "magdiff"
# what a copy of the pack leaves out, where no link can be made
_NOT_COPIED = shutil.ignore_patterns(".dev", ".git", "output", "__pycache__", "tests")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise DevError when `port` cannot be listened on."""
    with socket.socket() as probe:
        if not WINDOWS:  # there the option would allow two servers on one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DevError(
                f"Port {port} cannot be used ({error.strerror}). Another program, perhaps another ComfyUI, has it. "
                "Choose another one with --port, or --port 0 for any free one."
            ) from error


def link_pack(pack: Path, custom_nodes: Path) -> Path:
    """Make the folder `pack` appear in `custom_nodes` and return its place there.

    A symbolic link where the system allows it, else a directory junction (Windows), else a fresh copy.
    """
    place = custom_nodes / PACK_NAME
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        try:
            os.rmdir(place)  # a junction; an empty folder
        except OSError:
            shutil.rmtree(place)
    try:
        place.symlink_to(pack, target_is_directory=True)
        return place
    except OSError:
        pass
    if WINDOWS:
        made = subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(pack)], capture_output=True, check=False)
        if made.returncode == 0:
            return place
    shutil.copytree(pack, place, ignore=_NOT_COPIED)
    return place


def make_base(base: Path, pack: Path | None) -> Path:
    """Create ComfyUI's base directory `base` with its folders and `pack` as its only custom node pack."""
    for folder in ("custom_nodes", "input", "output", "temp", "models", "user/default"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        # otherwise the first visit covers the page with the templates dialog
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), "utf-8")
    if pack is not None:
        link_pack(pack, base / "custom_nodes")
    return base


class ComfyServer:
    """One ComfyUI server process on a loopback port; use it as a context manager, or call start and stop.

    Its output goes to ``base/server.log``.  :meth:`stop` ends the whole process tree, however it is left.
    """

    def __init__(
        self, tree: Path, python: str | Path, env: Mapping[str, str], base: Path, port: int = 0, options: Sequence[str] = ()
    ) -> None:
        self.tree = tree
        self.python = python
        self.env = env
        self.base = base
        self.port = port or free_port()
        self.options = options
        self.log = base / "server.log"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        database = (self.base / "user" / "comfyui.db").as_posix()
        return [
            str(self.python), str(self.tree / "main.py"), "--listen", HOST, "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", f"sqlite:///{database}", "--disable-auto-launch",
            *self.options,
        ]  # fmt: skip

    def start(self, patience: float = 300.0) -> ComfyServer:
        """Start the server and return when it answers; raises DevError with its log's end when it does not."""
        check_port(self.port)
        self.process = start_tree(self.command(), self.env, self.base, self.log)
        try:
            deadline = time.monotonic() + patience
            while not self.answers():
                self.check_alive()
                if time.monotonic() > deadline:
                    raise DevError(f"ComfyUI did not answer within {patience:.0f} s. The end of its log:\n{self.log_end()}")
                time.sleep(0.2)
            self._check_imports()
        except BaseException:
            self.stop()
            raise
        return self

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/system_stats", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def check_alive(self) -> None:
        """Raise DevError with the log's end when the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise DevError(
                f"ComfyUI ended with status {self.process.returncode}. The end of its log ({self.log}):\n{self.log_end()}"
            )

    def _check_imports(self) -> None:
        text = log_end(self.log, 100000)
        if any("IMPORT FAILED" in line and PACK_NAME in line for line in text.splitlines()):
            at = max(text.find("Traceback"), 0)
            raise DevError(f"ComfyUI could not import this pack:\n{text[at:][:4000]}")

    def log_end(self, lines: int = 40) -> str:
        return log_end(self.log, lines)

    def stop(self) -> None:
        if self.process is not None:
            stop_tree(self.process)
            self.process = None

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *reason: object) -> None:
        self.stop()
