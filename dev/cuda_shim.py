"""Let torchvision and torchaudio built for CUDA load beside a CPU-only torch (Linux).

Package indexes offer a CPU torch more often than CPU builds of its two companions.  Their extension modules then
name libtorch_cuda, libc10_cuda and libcudart as needed libraries, which are not there, although the CPU code in them
needs only a few symbols.  This makes stand-ins that export just those symbols.  Each one aborts when it is called,
which cannot happen with CPU tensors.  No file of any package is changed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .report import DevError

TOOLS = ("nm",)
COMPILERS = ("cc", "gcc", "clang")

_HEAD = """#include <stdio.h>
#include <stdlib.h>
static void refuse(const char *name) {
    fprintf(stderr, "%s was called, but this torch is built without CUDA\\n", name);
    abort();
}
"""


def compiler() -> str | None:
    """A C compiler on PATH, if the tools that go with it are there too."""
    if not all(shutil.which(tool) for tool in TOOLS):
        return None
    return next((found for found in map(shutil.which, COMPILERS) if found), None)


def _symbols(library: Path, which: str) -> dict[str, str]:
    """Dynamic symbols of a library as name -> nm's type letter; `which` is "defined" or "undefined"."""
    listed = subprocess.run(["nm", "-D", f"--{which}-only", str(library)], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listed.stdout.splitlines())
    return {row[-1]: row[-2] for row in rows}


def missing_symbols(extensions: list[Path], torch_libraries: list[Path]) -> set[str]:
    """CUDA symbols that the extension modules need and that neither they nor torch define."""
    present = {name.split("@")[0] for library in torch_libraries for name in _symbols(library, "defined")}
    missing = set()
    for extension in extensions:
        own = {name.split("@")[0] for name in _symbols(extension, "defined")}
        for name, kind in _symbols(extension, "undefined").items():
            # names with @ are versioned (libc, libcudart); w and v are weak and may stay undefined
            if "@" not in name and kind not in "wv" and name not in present and name not in own:
                missing.add(name)
    return {name for name in missing if "cuda" in name.lower()}


def stub_source(symbols: set[str]) -> str:
    """C source that defines every one of `symbols`: a function that aborts, or a null pointer for allocators."""
    lines = [_HEAD]
    for name in sorted(symbols):
        # ...9allocatorE is the mangled end of a variable named `allocator`
        lines.append(f"void *{name} = 0;" if name.endswith("9allocatorE") else f'void {name}(void) {{ refuse("{name}"); }}')
    return "\n".join(lines) + "\n"


def build(site_packages: Path, target: Path) -> None:
    """Write the stand-ins for the packages under `site_packages` into the folder `target`.

    That folder then belongs on LD_LIBRARY_PATH.  Raises DevError when there is no compiler or it fails.
    """
    command = compiler()
    if command is None:
        raise DevError(
            "torchvision was built for CUDA and does not load beside the CPU torch; a small stand-in library would "
            "help, but there is no C compiler. Install one (Debian, Ubuntu: apt install gcc) and run the command again."
        )
    extensions = [site_packages / "torchvision" / "_C.so", *sorted((site_packages / "torchaudio" / "lib").glob("*.so"))]
    symbols = missing_symbols(
        [file for file in extensions if file.exists()], sorted((site_packages / "torch" / "lib").glob("*.so*"))
    )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    sources = {"libtorch_cuda.so": stub_source(symbols), "libc10_cuda.so": stub_source(set())}
    for library, text in sources.items():
        source = target / (library + ".c")
        source.write_text(text, "utf-8")
        made = subprocess.run(
            [command, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", "-o", str(target / library), str(source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise DevError(f"{command} could not build {library}:\n{made.stderr.strip()}")
    for runtime in (site_packages / "torchvision.libs").glob("libcudart*.so.*"):
        major = runtime.name.rsplit(".so.", 1)[1].split(".")[0]
        (target / f"libcudart.so.{major}").symlink_to(runtime)
