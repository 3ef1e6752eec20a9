"""`python -m magdiff_core.train adapter`: trains an adapter for a base on clips of one's own, see docs/training.md.
`python -m magdiff_core.train {autoencoder,encoder,diffusion,export}`: trains the small model and writes its two files."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ..host import session
from . import adapter_command
from .alignments import NAMES, Alignments


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m magdiff_core.train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stages = {"autoencoder": "first stage", "encoder": "image encoder and Resampler", "diffusion": "last stage, needs both"}
    for name, help_text in stages.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the results")
        command.add_argument("--steps", type=int, help="stop after this many steps")
        command.add_argument("--seconds", type=float, help="stop after this much work, over all resumed runs")
        command.add_argument("--batch", type=int, help="pictures or clips a step")
        command.add_argument("--rate", type=float, help="learning rate")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or 1))
        command.add_argument("--resume", action="store_true", help="go on from the state in --out")
        if name == "autoencoder":
            command.add_argument(
                "--start-from", type=Path, help="folder with two model files, whose decoder alone goes on learning"
            )
        if name == "diffusion":
            command.add_argument("--autoencoder", type=Path, help="autoencoder.pt of the first stage")
            command.add_argument("--encoder", type=Path, help="subject_encoder.pt of its stage")
            command.add_argument("--start-from", type=Path, help="instead of both: folder with two model files to go on from")
            command.add_argument("--decay-from", type=float, help="share of the run after which the rate falls, 2/3 by default")
            command.add_argument("--warm-up", type=int, help="steps in which the rate rises, 100 by default")
            command.add_argument("--without", nargs="+", choices=NAMES, default=[], help="alignments to train without")
            command.add_argument(
                "--alphas", type=float, nargs=2, metavar=("TEXT", "IMAGE"), help="hold the weights of text and image at these"
            )
    command = commands.add_parser("export", help="write the two model files")
    command.add_argument("--out", type=Path, required=True, help="folder for the two files")
    command.add_argument("--autoencoder", type=Path, help="autoencoder.pt; untrained when left out")
    command.add_argument("--encoder", type=Path, help="subject_encoder.pt; untrained when left out")
    command.add_argument("--diffusion", type=Path, help="state.pt of the last stage; untrained when left out")
    command.add_argument("--start-from", type=Path, help="two model files, of which --autoencoder replaces the decoder")
    adapter_command.add_arguments(commands.add_parser("adapter", help="an adapter for any base, on your own clips"))
    parsed = parser.parse_args(arguments)
    options = vars(parsed)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    session.start()
    if parsed.command == "adapter":
        adapter_command.run(parsed)
        return
    import torch

    command = options.pop("command")
    if command == "export":
        from . import export

        if options["start_from"]:
            if not options["autoencoder"] or options["encoder"] or options["diffusion"]:
                parser.error("export --start-from goes with --autoencoder alone")
            export.put_decoder(options["out"], options["start_from"], options["autoencoder"])
        else:
            export.run(options["out"], options["autoencoder"], options["encoder"], options["diffusion"])
        return
    torch.set_num_threads(options.pop("threads"))
    options["folder"] = options.pop("out")
    options = {name: value for name, value in options.items() if value is not None}
    if command == "autoencoder":
        from . import autoencoder

        autoencoder.run(**options)
    elif command == "encoder":
        from . import subject_encoder

        subject_encoder.run(**options)
    else:
        from . import diffusion

        left_out, alphas = options.pop("without"), options.pop("alphas", None)
        kept = {name: name not in left_out for name in NAMES}
        diffusion.run(**options, alignments=Alignments(**kept, alphas=alphas and tuple(alphas)))


if __name__ == "__main__":
    main()
