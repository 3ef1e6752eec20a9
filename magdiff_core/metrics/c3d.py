"""C3D (Tran et al. 2015) from its public PyTorch layouts: classes of clips for the video Inception Score.

Two layouts are known by their keys: `conv1 ... fc8`, of the networks that were carried over from Caffe and fine-tuned on UCF-101,
and OpenMMLab's `backbone.conv1a ... cls_head.fc_cls`. Each has its own order of colours and mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
POOLED = ("conv1", "conv2", "conv3b", "conv4b", "conv5b")
"""Convolutions that a max pooling follows."""
DENSE = ("fc6", "fc7", "fc8")


@dataclass(frozen=True)
class Layout:
    """names: ours -> the file's. mean: of 0..255, in the order of colours that the network takes. bgr: that order."""

    names: dict[str, str]
    mean: tuple[float, float, float]
    bgr: bool


PLAIN = Layout({name: name for name in (*CONVOLUTIONS, *DENSE)}, (90.0, 98.0, 102.0), bgr=True)
OPENMMLAB = Layout(
    {
        **{name: f"backbone.{name if name[-1] in 'ab' else name + 'a'}.conv" for name in CONVOLUTIONS},
        "fc6": "backbone.fc6",
        "fc7": "backbone.fc7",
        "fc8": "cls_head.fc_cls",
    },
    (104.0, 117.0, 128.0),
    bgr=False,
)


class C3D(nn.Module):
    """Eight convolutions and three dense layers, in widths that the weights tell."""

    def __init__(self, state: Mapping[str, Tensor], layout: Layout, operations=nn) -> None:
        super().__init__()
        self.bgr = layout.bgr
        self.register_buffer("mean", torch.tensor(layout.mean)[:, None, None, None], persistent=False)
        for name in CONVOLUTIONS:
            width, before = state[f"{name}.weight"].shape[:2]
            self.add_module(name, operations.Conv3d(before, width, 3, padding=1))
        for name in DENSE:
            width, before = state[f"{name}.weight"].shape
            self.add_module(name, operations.Linear(before, width))

    def forward(self, clips: Tensor) -> Tensor:
        """RGB `[n, 3, 16, 112, 112]` in 0..255 -> `[n, classes]`, before the softmax."""
        x = (clips.flip(1) if self.bgr else clips) - self.mean
        for name in CONVOLUTIONS:
            x = F.relu(getattr(self, name)(x))
            if name in POOLED:
                # The first pooling keeps all frames; the last adds a border, so that 7x7 becomes 4x4.
                kernel = (1, 2, 2) if name == "conv1" else (2, 2, 2)
                x = F.max_pool3d(x, kernel, padding=(0, 1, 1) if name == "conv5b" else 0)
        x = x.flatten(1)
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))))


def read_c3d(tensors: Mapping[str, Tensor], name: str) -> C3D:
    """C3D with weights, in float32. Raises ValueError naming the file when it is another model or incomplete."""
    for layout in (PLAIN, OPENMMLAB):
        if f"{layout.names['conv1']}.weight" in tensors and f"{layout.names['conv3a']}.weight" in tensors:
            break
    else:
        raise ValueError(
            f"{name} is no C3D file: give one with the layers conv1 to fc8, OpenMMLab's, or c3d_ucf101.pt (TorchScript) together "
            "with allow_torchscript"
        )
    try:
        kinds = ("weight", "bias")
        state = {f"{ours}.{kind}": tensors[f"{theirs}.{kind}"].float() for ours, theirs in layout.names.items() for kind in kinds}
        network = C3D(state, layout)
        network.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} is cut short or another kind of C3D: {error}") from error
    return network.requires_grad_(False).eval()
