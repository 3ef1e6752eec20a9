"""I3D (Carreira & Zisserman 2017) from its public PyTorch layout, whose tensors tell all widths: features for FVD.

Keys are those of the weights that the FVD community shares as `i3d_pretrained_400.pt`. Padding is TensorFlow's "SAME": it depends
on the size of the input, and the larger half comes last.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
ORDER = (
    "Conv3d_1a_7x7", (1, 3, 3), "Conv3d_2b_1x1", "Conv3d_2c_3x3", (1, 3, 3), "Mixed_3b", "Mixed_3c", (3, 3, 3),
    "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", (2, 2, 2), "Mixed_5b", "Mixed_5c",
)  # fmt: skip
"""Layers by name; a triple is a max pooling of that kernel, with stride 2 where the kernel is larger than 1."""
LOGITS = "logits.conv3d.weight"


def same_padding(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """Padding of (time, height, width) in the order of `F.pad`."""
    pads: list[int] = []
    for length, reach, step in reversed(list(zip(size, kernel, stride))):
        total = max((-(-length // step) - 1) * step + reach - length, 0)
        pads += [total // 2, total - total // 2]
    return pads


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    # Everything before a pooling is at least 0, so zeros are as good as minus infinity.
    return F.max_pool3d(F.pad(x, same_padding(tuple(x.shape[2:]), kernel, stride)), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, shape: torch.Size, stride: int, operations=nn) -> None:
        super().__init__()
        self.stride = (stride,) * 3
        self.conv3d = operations.Conv3d(shape[1], shape[0], tuple(shape[2:]), self.stride, bias=False)
        self.bn = nn.BatchNorm3d(shape[0], eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        padding = same_padding(tuple(x.shape[2:]), self.conv3d.kernel_size, self.stride)
        return F.relu(self.bn(self.conv3d(F.pad(x, padding))))


class Mixed(nn.Module):
    """Four branches side by side: 1x1, 1x1 and 3x3 twice, pooling and 1x1."""

    def __init__(self, shapes: Mapping[str, torch.Size], operations=nn) -> None:
        super().__init__()
        for name in BRANCHES:
            self.add_module(name, Unit(shapes[name], 1, operations))

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), 1)


class I3D(nn.Module):
    """The network in widths that `tensors` tell; weights are not loaded yet."""

    def __init__(self, tensors: Mapping[str, Tensor], operations=nn) -> None:
        super().__init__()
        for name in ORDER:
            if name in STEM:
                stride = 2 if name == STEM[0] else 1
                self.add_module(name, Unit(tensors[f"{name}.conv3d.weight"].shape, stride, operations))
            elif isinstance(name, str):
                shapes = {part: tensors[f"{name}.{part}.conv3d.weight"].shape for part in BRANCHES}
                self.add_module(name, Mixed(shapes, operations))
        classes, width = tensors[LOGITS].shape[:2]
        self.logits = nn.Module()
        self.logits.conv3d = operations.Conv3d(width, classes, 1)

    def forward(self, clips: Tensor) -> Tensor:
        """`[n, 3, F, 224, 224]` in -1..1, F at least 9 -> `[n, classes]`: what comes before the softmax, mean over time."""
        x = clips
        for layer in ORDER:
            if isinstance(layer, str):
                x = getattr(self, layer)(x)
            else:
                x = _pool(x, layer, tuple(2 if reach > 1 else 1 for reach in layer))
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return self.logits.conv3d(x).mean((2, 3, 4))


def read_i3d(tensors: Mapping[str, Tensor], name: str) -> I3D:
    """I3D with weights, in float32. Raises ValueError naming the file when it is another model or incomplete."""
    if LOGITS not in tensors or f"{STEM[0]}.conv3d.weight" not in tensors:
        raise ValueError(
            f"{name} is no I3D file: give i3d_pretrained_400.pt, or i3d_torchscript.pt together with allow_torchscript"
        )
    try:
        network = I3D(tensors)
        wanted = network.state_dict()
        # Counters of batches play no part; some files lack them.
        state = {key: tensors.get(key, wanted[key]) for key in wanted if key.endswith("num_batches_tracked")}
        state |= {key: tensors[key].float() for key in wanted if key not in state}
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{name} is cut short or another kind of I3D: {error}") from error
    return network.requires_grad_(False).eval()
