"""ComfyUI's libraries in this process, without a server: for the trainer, the benchmarks and the tests.

`start()` must run before anything imports `comfy`. ComfyUI reads its command line when `comfy.cli_args` is first imported
and holds the result for the life of the process, so the first call decides and later calls change nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

PACK_FOLDER = Path(__file__).resolve().parents[2]


def find_comfyui() -> Path:
    """The folder of the ComfyUI to use: environment variable COMFYUI_PATH, else the one that `import comfy` would find.

    Raises:
        RuntimeError: there is none, or COMFYUI_PATH does not hold one.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / "comfy" / "sd.py").is_file():
            raise RuntimeError(f"COMFYUI_PATH is {named}, which holds no comfy/sd.py: set it to a ComfyUI folder")
        return folder
    found = importlib.util.find_spec("comfy")
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / "sd.py").is_file():
            return Path(place).resolve().parent
    raise RuntimeError("no ComfyUI found: set COMFYUI_PATH to its folder, or put that folder on PYTHONPATH")


def start(base_directory: str | os.PathLike | None = None, arguments: tuple[str, ...] = ()) -> Path:
    """Makes `comfy`, `folder_paths` and `nodes` importable, on the CPU when there is no CUDA device.

    Args:
        base_directory: where ComfyUI looks for models, input, output and custom_nodes; its own folder by default.
        arguments: further ComfyUI command line options.

    Returns:
        The folder of the ComfyUI in use.

    Raises:
        RuntimeError: no ComfyUI was found.
    """
    folder = find_comfyui()
    # ComfyUI has a module `nodes`, this pack a folder of that name: the former must be found first.
    sys.path[:] = [str(folder)] + [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    if "comfy.cli_args" in sys.modules:
        return folder
    options = list(arguments)
    if base_directory is not None:
        options += ["--base-directory", str(base_directory)]
    import torch

    if not torch.cuda.is_available() and "--cpu" not in options:
        options.append("--cpu")
    import comfy.options

    given = sys.argv
    sys.argv = [given[0] if given else "magdiff", *options]
    try:
        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = given
        comfy.options.enable_args_parsing(False)
    return folder


def load_pack(pack: str | os.PathLike = PACK_FOLDER) -> dict[str, type]:
    """Loads this pack's nodes the way ComfyUI does at its start.

    Returns:
        Node classes by node id, ours only.

    Raises:
        RuntimeError: ComfyUI refused the pack; its log says why.
    """
    start()
    import nodes

    if not hasattr(nodes, "load_custom_node"):
        raise RuntimeError(f"the module `nodes` is {nodes.__file__}, not ComfyUI's: call session.start() earlier")
    before = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(str(pack), module_parent="custom_nodes")):
        raise RuntimeError(f"ComfyUI could not load the pack in {pack}: see the log above")
    mappings = nodes.NODE_CLASS_MAPPINGS
    return {name: node for name, node in mappings.items() if name not in before or name.startswith("MagDiff")}
