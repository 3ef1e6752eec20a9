"""Options that the benchmarks of the small model share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def add_options(parser: argparse.ArgumentParser, clips: int, of: str, out: str, written: str) -> None:
    """`clips`: default of --clips, which counts clips `of` something. `out`: default of --out, for the files `written`."""
    parser.add_argument("--clips", type=int, default=clips, help=f"clips {of} (default {clips})")
    parser.add_argument("--seed", type=int, default=0, help="draws the clips and their noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder for {written}")
    parser.add_argument("--models", type=Path, help="folder with another pair of the two files, for one just trained")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; its own default otherwise")


def add_bfloat16(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bfloat16", action="store_true", help="sample in bfloat16, about twice as fast where the processor has it"
    )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The checked options; --threads is in force from here on."""
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}: at least 1 is needed")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options
