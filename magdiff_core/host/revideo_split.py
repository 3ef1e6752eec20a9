"""Split ReVideo's checkpoint once: a control file, with the fine-tuned base as differences to a stock checkpoint.

    python -m magdiff_core.host.revideo_split model.ckpt --base svd.safetensors --out revideo-control.safetensors

The file is about a quarter of the checkpoint, and needs no pickle any more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..weights.revideo import (
    BASE_DIFFERENCE,
    CLIP_FRAMES,
    CONTROL_FORMAT,
    CONTROL_VERSION,
    TEMPORAL_KEY_VALUE,
    control_prefix,
    read_control,
    read_unet,
)


@dataclass(frozen=True)
class Split:
    """What was written: counts of tensors of the control branch, of trained keys and values, and of other weights that differ."""

    path: Path
    control: int
    key_value: int
    others: int

    def __str__(self) -> str:
        text = f"{self.path}: control branch of {self.control} tensors, {self.key_value} temporal keys and values as differences"
        if self.others:
            text += f", and {self.others} other weights of the base that differ too"
        return text


def split_checkpoint(
    checkpoint: str | os.PathLike,
    base: str | os.PathLike,
    target: str | os.PathLike,
    counter: Callable[[int], Callable[[], None]] | None = None,
) -> Split:
    """Write the control file `target` from ReVideo's `checkpoint` and the stock Stable Video Diffusion that it was made from.

    Every weight of the UNet that differs from `base` is written, so that both together give the checkpoint again. `counter` is
    called with the count of weights to compare, and what it returns after each one. Raises ValueError when a file holds no control
    branch or no UNet, or the UNets are of different sizes; FileExistsError when `target` is there.
    """
    from safetensors.torch import save_file

    from .adapter_file import weight_hash
    from .lightning_file import load_checkpoint_tensors

    target = Path(target)
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another name, or remove it first")
    state_dict, metadata = load_checkpoint_tensors(checkpoint)
    if control_prefix(state_dict) is None:
        raise ValueError(f"{checkpoint} holds no ReVideo control branch")
    tuned = read_unet(state_dict)
    stock = read_unet(load_checkpoint_tensors(base)[0])
    for path, unet in ((checkpoint, tuned), (base, stock)):
        if not unet:
            raise ValueError(f"{path} holds no UNet: the checkpoint must be the whole one, the base Stable Video Diffusion")
    if {k: v.shape for k, v in tuned.items()} != {k: v.shape for k, v in stock.items()}:
        raise ValueError(f"{base} is no base of {checkpoint}: their UNets have other layers or sizes")

    tensors = {key: value.contiguous() for key, value in read_control(state_dict).items()}
    written = {"control": len(tensors), "key_value": 0, "others": 0}
    hashes = {}
    each_weight = counter(len(tuned)) if counter is not None else None
    for key, weight in tuned.items():
        trained = TEMPORAL_KEY_VALUE.fullmatch(key) is not None
        if trained or not _same(weight, stock[key]):
            tensors[BASE_DIFFERENCE + key] = weight.float() - stock[key].float()
            hashes[key] = weight_hash(stock[key])
            written["key_value" if trained else "others"] += 1
        if each_weight is not None:
            each_weight()
    about = {
        "format": CONTROL_FORMAT,
        "format_version": CONTROL_VERSION,
        "clip_frames": metadata.get("clip_frames", str(CLIP_FRAMES)),
        "base": "Stable Video Diffusion img2vid (14 frames)",
        "base_hashes": json.dumps(hashes),
        "licence": "Stable Video Diffusion non-commercial community licence",
        "trained_from": "released ReVideo checkpoint",
    }
    if "num_head_channels" in metadata:
        about["num_head_channels"] = metadata["num_head_channels"]
    # Under another name until it is whole, so that an interruption leaves nothing that looks like a control file.
    unfinished = target.with_name(target.name + ".part")
    try:
        save_file(tensors, unfinished, about)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    return Split(target, **written)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two weights are equal in the precision of the coarser one."""
    coarser = min((a.dtype, b.dtype), key=lambda dtype: torch.finfo(dtype).bits)
    return torch.equal(a.to(coarser), b.to(coarser))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from .session import start

    parser = argparse.ArgumentParser(prog="revideo_split", description="Split ReVideo's checkpoint into a control file.")
    parser.add_argument("checkpoint", metavar="MODEL.ckpt", help="ReVideo's checkpoint")
    parser.add_argument("--base", required=True, metavar="SVD.safetensors", help="stock Stable Video Diffusion (14 frames)")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="the control file to write")
    options = parser.parse_args(arguments)
    start(arguments=("--cpu",))
    try:
        done = split_checkpoint(options.checkpoint, options.base, options.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"revideo_split: {error}\n")
        return 2
    sys.stdout.write(f"{done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
