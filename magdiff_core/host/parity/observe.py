"""Look into a running UNet: what goes into and comes out of its layers, for the conditional row of the batch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

COND = 0
"""ComfyUI's number of the positive conditioning in `cond_or_uncond`."""


class Observer:
    """Context in which the last values of chosen layers are kept, seen in calls that hold the positive conditioning.

    `outputs`: every raw UNet output `[2, F, C, h, w]`, negative first, one entry a step.
    """

    def __init__(self, model: ModelPatcher):
        self._unet: nn.Module = model.model.diffusion_model
        self._hooks = [
            self._unet.register_forward_pre_hook(self._call_starts, with_kwargs=True),
            self._unet.register_forward_hook(self._call_ends, with_kwargs=True),
        ]
        self._order: list[int] = []
        self._rows: dict[int, Tensor] = {}
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.values: dict[str, Tensor] = {}

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _call_starts(self, unet, args, kwargs) -> None:
        self._order = kwargs["transformer_options"]["cond_or_uncond"]

    def _call_ends(self, unet, args, kwargs, out: Tensor) -> None:
        for number, row in zip(self._order, out.detach().float().cpu().chunk(len(self._order)), strict=True):
            self._rows[number] = row
        if len(self._rows) == 2:
            self.outputs.append((self._rows[1], self._rows[COND]))
            self._rows = {}

    @property
    def observing(self) -> bool:
        """Whether the call that runs now holds the positive conditioning."""
        return COND in self._order

    def cond_row(self, x: Tensor) -> Tensor:
        """The part of `x` (clips, or frames of clips, in dimension 0) that belongs to the positive conditioning."""
        return x.chunk(len(self._order))[self._order.index(COND)]

    def output(self, name: str, module: nn.Module, shown: Callable[[Tensor], Tensor]) -> None:
        """Keep `shown(output of module)` as `name`."""

        def hook(module, args, out) -> None:
            if self.observing:
                self.values[name] = shown(out.detach().clone())

        self._hooks.append(module.register_forward_hook(hook))

    def input(self, name: str, module: nn.Module, shown: Callable[[Tensor], Tensor]) -> None:
        """Keep `shown(first input of module)` as `name`."""

        def hook(module, args) -> None:
            if self.observing:
                self.values[name] = shown(args[0].detach().clone())

        self._hooks.append(module.register_forward_pre_hook(hook))
