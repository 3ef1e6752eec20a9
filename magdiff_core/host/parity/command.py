"""The parity command, for the command line and for tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..session import start
from .fixture import load_fixture


def run(path: str | Path, write: Callable[[str], object] = print) -> int:
    """Print a line for each stored tensor of `path` and a summary as the last one. Runs on the CPU, in float32.

    Returns 0 when all covered tensors are within tolerance, 1 when one is over, 2 when the file cannot be used. In a file of
    another model's weights no tensor is covered.
    """
    start(arguments=("--cpu",))
    import torch

    from . import dynamicrafter, magdiff, revideo
    from .report import OVER, compare, summary, tolerance

    formats = (magdiff, dynamicrafter, revideo)
    try:
        fixture = load_fixture(path)
        parity = next((module for module in formats if module.recognises(fixture)), None)
        if parity is None:
            known = "MagDiff, VidRD, DynamiCrafter, ReVideo"
            sys.stderr.write(f"parity: the weights (sd.*) of {path} are of no layout that is compared here: {known}\n")
            computed = {}
        else:
            with torch.inference_mode():
                computed = parity.compute(fixture)
    except KeyError as error:
        sys.stderr.write(f"parity: {path} or its JSON lacks the entry {error}\n")
        return 2
    except ValueError as error:
        sys.stderr.write(f"parity: {error}\n")
        return 2
    comparisons = compare(fixture.stored, computed, tolerance)
    for comparison in comparisons:
        write(str(comparison))
    write(summary(comparisons))
    return int(any(comparison.verdict == OVER for comparison in comparisons))
