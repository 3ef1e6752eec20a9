"""What the user sees on screen while a command works, and the one kind of error that ends a command."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class DevError(Exception):
    """Something the user can act on; its text is shown as it is, without a traceback."""


def say(text: str = "") -> None:
    """Print one line at once, also where the terminal cannot show every letter of it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


class Progress:
    """One line on screen for one long piece of work: what happens last, then how long the whole took."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.live = sys.stdout.isatty()

    def show(self, detail: str) -> None:
        """Replace the line's end by `detail`; does nothing where the output is not a terminal."""
        if self.live:
            self._rewrite(f"  {self.title}: {detail}")

    def finish(self, result: str) -> None:
        if self.live:
            self._rewrite("")
        say(f"  {self.title}: {result} ({time.monotonic() - self.started:.0f} s)")

    def _rewrite(self, text: str) -> None:
        # padded instead of erased: not every Windows console knows the control sequence
        width = shutil.get_terminal_size().columns - 1
        text = text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8")
        print("\r" + text[:width].ljust(width), end="\r", flush=True)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Report a piece of work: a line when it starts, its last detail while it runs, a line when it ends."""
    line = Progress(title)
    if line.live:
        line.show("...")
    else:
        say(f"  {title} ...")
    try:
        yield line
    except BaseException:
        line.finish("not finished")
        raise
    line.finish("done")
