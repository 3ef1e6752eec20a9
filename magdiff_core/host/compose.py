"""Put an adapter together out of several files, and turn pickles into safetensors, without running anything that they hold.

python -m magdiff_core.host.compose --temporal ModelT2V.pth --image model.ckpt --subject zero --out my-adapter.safetensors
python -m magdiff_core.host.compose --convert model.ckpt --out model.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..weights.compose import PROVENANCE, WORDS, ZERO, Source, compose, left_out


@dataclass(frozen=True)
class Report:
    """What was written to `path`, in `lines`; `made` is False where the file had been there, made of the same files."""

    path: Path
    lines: tuple[str, ...]
    made: bool = True

    def __str__(self) -> str:
        return "\n".join(
            (f"{self.path.name}" if self.made else f"{self.path.name} is there already, made of the same files:", *self.lines)
        )


def compose_files(chosen: Mapping[str, str | os.PathLike], target: str | os.PathLike) -> Report:
    """Write the adapter `target` from `chosen` (part -> file, or "zero" for the subject branch).

    Files of every layout that `read_adapter_weights` knows are taken. A target that was made of the same files is left as it
    is. Raises FileExistsError when another file has its name, ValueError as `weights.compose.compose` does and for a file that
    cannot be read.
    """
    target = Path(target)
    wanted = {part: _identity(file) for part, file in chosen.items()}
    if target.exists():
        provenance = _provenance(target)
        if {part: (entry.get("file"), entry.get("bytes")) for part, entry in provenance.items()} != wanted:
            raise FileExistsError(f"{target} exists and is another adapter: choose another name, or remove it first")
        return Report(target, tuple(_lines(provenance)), made=False)
    sources = _read(chosen)
    composed = compose(sources, zero_subject=ZERO in chosen.values())
    _save(composed.weights, composed.to_metadata(), target)
    lines = _lines(composed.provenance)
    for source in {source.name: source for source in sources.values()}.values():
        count = left_out(source)
        if count:
            lines.append(f"left out: {count} differences to the base of {source.name}, which belong to that whole model")
    return Report(target, tuple(lines))


def convert_file(path: str | os.PathLike, target: str | os.PathLike) -> Report:
    """Write every tensor of the file `path` to the safetensors file `target`, names and precision as they are.

    Raises FileExistsError when `target` is there, ValueError for a file that cannot be read or wants to run code.
    """
    from .lightning_file import load_checkpoint_tensors

    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another name, or remove it first")
    tensors, metadata = load_checkpoint_tensors(path)
    _save(tensors, {**metadata, "converted_from": Path(path).name}, target)
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    parameters = sum(value.numel() for value in tensors.values())
    return Report(target, (f"all {len(tensors)} tensors of {Path(path).name}: {parameters:,} numbers, {', '.join(kinds)}",))


def _identity(file: str | os.PathLike) -> tuple[str, int]:
    if file == ZERO:
        return ZERO, 0
    if not os.path.isfile(file):
        raise ValueError(f"there is no file {file}")
    return Path(file).name, os.path.getsize(file)


def _read(chosen: Mapping[str, str | os.PathLike]) -> dict[str, Source]:
    from ..weights.adapter_layouts import read_adapter_weights
    from .lightning_file import load_checkpoint_tensors

    read: dict[str, Source] = {}
    for file in {os.fspath(file) for file in chosen.values() if file != ZERO}:
        try:
            weights, config = read_adapter_weights(*load_checkpoint_tensors(file))
        except ValueError as error:
            raise ValueError(str(error) if file in str(error) else f"{file}: {error}") from error
        read[file] = Source(*_identity(file), weights, config)
    return {part: read[os.fspath(file)] for part, file in chosen.items() if file != ZERO}


def _provenance(target: Path) -> dict[str, dict]:
    """Where the parts of an adapter came from; empty for a file that was not composed here."""
    from .tensor_file import load_tensors

    try:
        return json.loads(load_tensors(target)[1].get(PROVENANCE, "{}"))
    except ValueError:
        return {}


def _lines(provenance: Mapping[str, Mapping]) -> list[str]:
    lines = []
    for part in (part for part in WORDS if part in provenance):
        entry = provenance[part]
        if entry["file"] == ZERO:
            lines.append(f"{WORDS[part]}: zeros, which change nothing until they are trained")
        else:
            lines.append(
                f"{WORDS[part]}: {entry['tensors']} tensors, {entry['parameters']:,} numbers of {entry['file']} "
                f"({entry['trained_from']}); base {entry['base']}; licence: {entry['licence']}"
            )
    return lines


def _save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], target: Path) -> None:
    from safetensors.torch import save_file

    # A file may not hold one memory under two names, as tied weights are.
    seen: set[int] = set()
    written = {}
    for key, value in tensors.items():
        storage = value.untyped_storage().data_ptr()
        written[key] = value.clone(memory_format=torch.contiguous_format) if storage in seen else value.contiguous()
        seen.add(storage)
    # Under another name until it is whole, so that an interruption leaves nothing that looks like an adapter.
    unfinished = target.with_name(target.name + ".part")
    try:
        save_file(written, unfinished, dict(metadata))
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from ..weights.compose import IMAGE, SUBJECT, TEMPORAL
    from .session import start

    parser = argparse.ArgumentParser(prog="compose", description="Put an adapter together, or turn a pickle into safetensors.")
    parser.add_argument("--temporal", metavar="FILE", help="file with the layers along time")
    parser.add_argument("--image", metavar="FILE", help="file with the image stream: keys, values, projector, learned weights")
    parser.add_argument("--subject", metavar="FILE", help="file with the subject branch, or: zero")
    parser.add_argument("--convert", metavar="FILE", help="write all tensors of this file instead")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="the file to write")
    options = parser.parse_args(arguments)
    chosen = {TEMPORAL: options.temporal, IMAGE: options.image, SUBJECT: options.subject}
    chosen = {part: file for part, file in chosen.items() if file is not None}
    if bool(chosen) == bool(options.convert):
        parser.error("give either --convert, or any of --temporal, --image and --subject")
    start(arguments=("--cpu",))
    try:
        done = convert_file(options.convert, options.out) if options.convert else compose_files(chosen, options.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"compose: {error}\n")
        return 2
    sys.stdout.write(f"{done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
