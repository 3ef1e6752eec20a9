"""`python -m magdiff_core.host.parity FILE.safetensors`: exit status 1 when a tensor is over its tolerance, 2 for a file that
cannot be used."""

from __future__ import annotations

import argparse
import sys

from .command import run

parser = argparse.ArgumentParser(prog="parity", description="Compare this pack with stored results of another implementation.")
parser.add_argument("file", metavar="FILE.safetensors", help="weights, inputs and results; FILE.json must lie beside it")
sys.exit(run(parser.parse_args().file))
