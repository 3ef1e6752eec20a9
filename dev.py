"""The commands of this repository: ``python dev.py --help``.

Python's standard library only, until the repository's own virtual environment stands.  This file keeps to
syntax that old Pythons read too, so that a wrong Python gets a message and not a traceback.
"""
import sys

OLDEST = (3, 10)
NEWEST = (3, 13)


def wrong_python(version):
    """What to tell someone whose Python is `version` (major, minor), or None when it is a supported one."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    return (
        "error: this is Python %d.%d, but ComfyUI and its packages need Python %d.%d to %d.%d.\n"
        "Install one of them (https://www.python.org/downloads/) and run for example:  python%d.%d dev.py demo"
        % (version[0], version[1], OLDEST[0], OLDEST[1], NEWEST[0], NEWEST[1], NEWEST[0], NEWEST[1] - 1)
    )


if __name__ == "__main__":
    message = wrong_python(sys.version_info)
    if message:
        sys.exit(message)
    from dev.commands import main

    sys.exit(main(sys.argv[1:]))
