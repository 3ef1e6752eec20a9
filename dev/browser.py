"""Find a Chrome, Chromium or Edge for the browser tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from .report import DevError, say

_NAMES = (
    "google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome", "microsoft-edge", "msedge",
)  # fmt: skip
_MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
_WINDOWS = ("Google/Chrome/Application/chrome.exe", "Chromium/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")


def _places(environ: Mapping[str, str]) -> Iterator[str]:
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            yield found
    if sys.platform == "darwin":
        yield from _MAC
    elif sys.platform == "win32":
        for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
            if environ.get(variable):
                yield from (str(Path(environ[variable], place)) for place in _WINDOWS)


def find(environ: Mapping[str, str] = os.environ) -> str | None:
    """Path of the browser to use: CHROME_PATH if set, else an installed one, else None.

    Raises DevError when CHROME_PATH names no file.
    """
    named = environ.get("CHROME_PATH")
    if named:
        if not Path(named).is_file():
            raise DevError(f"CHROME_PATH is {named}, but there is no such file. Correct it, or unset it.")
        return named
    return next((place for place in _places(environ) if Path(place).is_file()), None)


def find_or_install(log: Path) -> str | None:
    """Like :func:`find`, but on Debian and as root it installs the distribution's chromium when there is none."""
    found = find()
    if found:
        return found
    if not (sys.platform == "linux" and shutil.which("apt-get") and os.geteuid() == 0):
        return None
    say("  no browser found: installing Debian's chromium ...")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(log, "ab") as sink:
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            if subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False).returncode:
                say(f"  chromium could not be installed, see {log}")
                return None
    return find()
