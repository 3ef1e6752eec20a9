"""How values inside a running UNet are laid out in the files of stored tensors, and what the first cross-attention gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .observe import Observer

Place = tuple[Callable, nn.Module, Callable]
"""A method of `Observer`, the layer that it watches, and the layout."""


@dataclass(frozen=True)
class Shown:
    """Layouts of a layer's value; `size`: (h, w) of the layer, in tokens."""

    observer: Observer
    frames: int
    size: tuple[int, int]

    def frames_first(self, x: Tensor) -> Tensor:
        """`[clips * F, C, h, w]` -> `[F, C, h, w]`, at any size."""
        return self.observer.cond_row(x)

    def channels_first(self, x: Tensor) -> Tensor:
        """`[clips * F, C, h, w]` or `[clips, C, F, h * w]` -> `[C, F, h, w]`."""
        x = self.observer.cond_row(x)
        return x.transpose(0, 1) if x.shape[0] == self.frames else x[0].unflatten(-1, self.size)

    def tokens(self, x: Tensor) -> Tensor:
        """`[clips * F, h * w, C]` or `[clips, F * h * w, C]` -> `[F, h, w, C]`."""
        return self.observer.cond_row(x).reshape(self.frames, *self.size, -1)

    def tokens_in_time(self, x: Tensor) -> Tensor:
        """As `tokens`, but `[h, w, F, C]`."""
        return self.tokens(x).permute(1, 2, 0, 3)

    def pixels(self, x: Tensor) -> Tensor:
        """`[clips * h * w, F, C]` -> `[h, w, F, C]`."""
        return self.observer.cond_row(x).unflatten(0, self.size)

    def row(self, x: Tensor) -> Tensor:
        """`[clips * F, C]` -> `[1, C]`."""
        return self.observer.cond_row(x)[:1]


def as_is(x: Tensor) -> Tensor:
    """The layout of a value that a file holds as the layer gives it."""
    return x


def cross_attention_places(observer: Observer, block: BasicTransformerBlock, shown: Shown) -> dict[str, Place]:
    """What goes into the cross-attention of `block` and comes out of it, by name in a file."""
    return {
        "mid.blk_after_attn1": (observer.input, block.norm2, shown.tokens),
        "mid.apa_in": (observer.output, block.norm2, shown.tokens),
        "mid.apa_pre_to_out": (observer.input, block.attn2.to_out, shown.tokens),
        "mid.apa_out": (observer.output, block.attn2.to_out, shown.tokens),
    }


def observe_streams(observer: Observer, model: ModelPatcher, shown: Shown) -> None:
    """Both attentions of the first cross-attention, before they are weighed: no layer gives them, ComfyUI's attention does."""
    order = ("self-attention", "mid.apa_text", "mid.apa_image")
    seen: list[str] = []

    def attention(function: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        out = function(q, k, v, *args, **kwargs)
        if observer.observing and kwargs["transformer_options"]["block"] == ("input", 1) and len(seen) < len(order):
            name = order[len(seen)]
            seen.append(name)
            if name.startswith("mid."):
                observer.values[name] = shown.tokens(out.detach().clone())
        return out

    model.model_options["transformer_options"]["optimized_attention_override"] = attention
