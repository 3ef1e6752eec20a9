"""What the pack adds to ComfyUI's start, over what ComfyUI itself needs to import its modules, in one run.

    python dev.py run -m benchmarks.start [--starts 5]

Each start is a fresh Python that imports ComfyUI and then has it load the pack, as at a user's start. Time is process CPU time, so
other work on the machine disturbs it little. The first start, which may compile bytecode, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from magdiff_core.host import session

_PROBE = """
import asyncio, json, sys, time
blocked, folder = json.loads(sys.argv[1]), sys.argv[2]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.argv = ["probe", "--cpu"]
start = time.process_time()
import comfy.options
comfy.options.enable_args_parsing()
import nodes, comfy_api.latest, comfy.utils, comfy.samplers
# what ComfyUI brings in for the first pack with a pyproject.toml, whichever that is
import comfy_config.config_parser
comfyui_seconds = time.process_time() - start
sys.meta_path.insert(0, Missing())
for name in [name for name in sys.modules if name.split(".")[0] in blocked]:
    del sys.modules[name]
before, start = set(sys.modules), time.process_time()
loaded = asyncio.run(nodes.load_custom_node(folder, module_parent="custom_nodes"))
seconds = time.process_time() - start
ours = sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("MagDiff"))
print("RESULT" + json.dumps([loaded, seconds, comfyui_seconds, sorted(set(sys.modules) - before), ours]))
"""


@dataclass(frozen=True)
class Start:
    """CPU seconds of loading the pack and of importing ComfyUI, the modules that came in with the pack, and its node ids."""

    seconds: float
    comfyui_seconds: float
    modules: list[str]
    nodes: set[str]


def start(folder: Path, blocked: tuple[str, ...] = ()) -> Start:
    """Loads the pack at `folder` into a bare ComfyUI in a fresh Python, as if the packages in `blocked` were not installed.

    Raises:
        RuntimeError: it did not load; with everything that Python and ComfyUI said.
    """
    comfyui = session.find_comfyui()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(comfyui), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", _PROBE, json.dumps(blocked), str(folder)]
    done = subprocess.run(command, env=env, cwd=comfyui, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    loaded, *measured = json.loads(lines[-1].removeprefix("RESULT")) if lines else [False]
    if not loaded:
        raise RuntimeError(f"the pack in {folder} did not load:\n{done.stdout}{done.stderr}")
    seconds, comfyui_seconds, modules, nodes = measured
    return Start(seconds, comfyui_seconds, modules, set(nodes))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="counted starts (default 5)")
    options = parser.parse_args()
    if options.starts < 1:
        parser.error(f"--starts is {options.starts}: at least 1 is needed")
    starts = [start(session.PACK_FOLDER) for _ in range(1 + options.starts)][1:]
    ratios = [each.seconds / each.comfyui_seconds for each in starts]
    pack, comfyui = (statistics.median(getattr(each, name) for each in starts) for name in ("seconds", "comfyui_seconds"))
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
    print(f"pack {pack:.2f} s, ComfyUI {comfyui:.2f} s, ratio {spread}")


if __name__ == "__main__":
    main()
