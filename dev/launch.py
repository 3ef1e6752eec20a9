"""``python dev/launch.py [-m MODULE | -c CODE | FILE] ARGS``: Python 3.10's stand-in for PYTHONSAFEPATH.

Python 3.10 always puts the current or the script's folder in front of the search path.  There stands our package
`nodes`, but `import nodes` must find ComfyUI's module.
"""

from __future__ import annotations

import runpy
import sys


def launch(arguments: list[str]) -> None:
    """Do what `python ARGUMENTS` does, with the search path as it is now."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - what -c means
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]
    launch(sys.argv[1:])
