"""Child processes: a pip run whose output is kept, and a process tree that can be ended as a whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WINDOWS = sys.platform == "win32"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def start_tree(command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen:
    """Start `command` as the head of its own process group, its output going to the file `log`.

    The terminal's Ctrl-C does not reach it: whoever started it must end it with :func:`stop_tree`.
    """
    if WINDOWS:
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        apart = {"start_new_session": True}
    with open(log, "wb") as sink:
        return subprocess.Popen(
            list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, **apart
        )


def stop_tree(process: subprocess.Popen, patience: float = 8.0) -> None:
    """End a process that :func:`start_tree` started together with its children; returns once it is gone."""
    if process.poll() is None:
        if WINDOWS:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        else:
            _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            if not WINDOWS:
                _signal_group(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
    elif not WINDOWS:
        _signal_group(process.pid, signal.SIGTERM)  # children that outlived their head


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def log_end(log: Path, lines: int = 40) -> str:
    """The last `lines` lines of a log file without colour codes; empty when there is no such file."""
    if not log.is_file():
        return ""
    text = _ANSI.sub("", log.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(text.splitlines()[-lines:])


def run_logged(
    command: Sequence[str], env: Mapping[str, str], log: Path, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str]:
    """Run `command` to its end; every line goes to `log` (appended) and to `on_line`.

    Returns the exit status and the whole output.
    """
    collected = []
    with open(log, "a", encoding="utf-8") as sink:
        sink.write("\n$ " + " ".join(command) + "\n")
        with subprocess.Popen(
            list(command), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", errors="replace",
        ) as process:  # fmt: skip
            for line in process.stdout:
                collected.append(line)
                sink.write(line)
                on_line(line.rstrip())
    return process.returncode, "".join(collected)


class Terminated(KeyboardInterrupt):
    """This process alone was told to end (SIGTERM, SIGHUP), unlike with Ctrl-C, which its children get too."""


def run_in_foreground(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> int:
    """Run `command` on this terminal and return its exit status.

    After Ctrl-C the child is waited for until it has tidied up; a second Ctrl-C, or a request to end that only
    reached this process, is passed on to it.
    """
    process = subprocess.Popen(list(command), env=dict(env), cwd=cwd)
    interrupts = 0
    while True:
        try:
            status = process.wait()
            return 130 if interrupts and status == 0 else status
        except KeyboardInterrupt as reason:
            interrupts += 1
            if interrupts > 2:
                process.kill()
            elif interrupts > 1 or isinstance(reason, Terminated):
                process.send_signal(signal.SIGTERM if WINDOWS else signal.SIGINT)
