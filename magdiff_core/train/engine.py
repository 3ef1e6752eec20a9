"""Where the trainer computes: this process and one device, or several through accelerate.

Every process draws the same random numbers for the whole batch and takes its share of the clips, so the number of devices changes
nothing but the speed and the order of additions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, autocast, nn

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """One process, one device.

    `precision`: "no" (float32), "bf16", or "fp16" with a scaled loss. `first`: this process writes files. `rank` of `processes`:
    which share of a batch is this one's.
    """

    rank, processes, first = 0, 1, True

    def __init__(self, device: str | torch.device = "cpu", precision: str = "no") -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.module: nn.Module | None = None
        self.parameters: dict[str, nn.Parameter] = {}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def scales_loss(self) -> bool:
        """Whether a gradient that is not finite is skipped, because the loss was scaled too high."""
        return self.scaler is not None and self.scaler.is_enabled()

    def prepare(
        self, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
    ) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
        """Optimiser and parameters (kept as `parameters`, too) to use from here on."""
        self.parameters = parameters
        return optimizer, parameters

    def run(self, *inputs) -> Any:
        """`module(*inputs)` in the chosen precision."""
        enabled = self.precision != "no"
        with autocast(self.device.type, PRECISIONS[self.precision] if enabled else torch.bfloat16, enabled=enabled):
            return self.module(*inputs)

    @contextlib.contextmanager
    def with_values(self, values: dict[str, Tensor]) -> Iterator[None]:
        """The parameters hold `values` inside of the context."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            self._set(values)
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(values[name])

    def backward(self, loss: Tensor, last: bool) -> None:
        """`last`: of the parts that form one step."""
        self.scaler.scale(loss).backward()

    def clip(self, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], limit: float) -> Tensor:
        """Norm of all gradients, which are scaled down to `limit` where they exceed it."""
        self.scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters.values(), limit)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.step(optimizer)
        self.scaler.update()

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        return value

    def whole(self, state: Any) -> Any:
        """`state` (nested dicts and lists) with every tensor in one piece, for a file."""
        return state

    def spread(self, whole: Tensor, like: Tensor) -> Tensor:
        """A tensor of `whole` laid out like a parameter."""
        return whole

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        optimizer.load_state_dict(state)

    def wait(self) -> None:
        """Until all processes are here."""

    def state_dict(self) -> dict:
        return self.scaler.state_dict() if self.scales_loss else {}

    def load_state_dict(self, state: dict) -> None:
        if self.scales_loss and state:
            self.scaler.load_state_dict(state)


class AccelerateEngine(Engine):
    """As many processes as `accelerate launch` started, with the precision and the sharding that it was told."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise RuntimeError("several devices need accelerate: pip install accelerate") from error
        # One process may have more clips to encode than the others.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))])
        super().__init__(self.accelerator.device)
        self.precision = self.accelerator.mixed_precision
        if self.precision not in PRECISIONS:
            raise ValueError(f"accelerate's mixed precision is {self.precision}: choose one of {', '.join(PRECISIONS)}")
        self.scaler = self.accelerator.scaler
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.first = self.accelerator.is_main_process

    def prepare(self, optimizer, parameters):
        module = self.module
        names = {id(value): name for name, value in parameters.items()}
        places = {names[id(value)]: place for place, value in module.named_parameters() if id(value) in names}
        self.module, optimizer = self.accelerator.prepare(module, optimizer)
        # sharding puts other parameters in their places
        self.parameters = {name: module.get_parameter(places[name]) for name in parameters}
        return optimizer, self.parameters

    def run(self, *inputs):
        return self.module(*inputs)

    def _set(self, values):
        if hasattr(self.module, "reshard"):
            self.module.reshard()  # or the copies in one piece would stay as they were
        super()._set(values)

    def backward(self, loss, last):
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            self.accelerator.backward(loss)

    def clip(self, optimizer, parameters, limit):
        norm = self.accelerator.clip_grad_norm_(list(parameters.values()), limit)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def step(self, optimizer):
        optimizer.step()

    def mean(self, value):
        return self.accelerator.reduce(value, "mean")

    def whole(self, state):
        return _map_tensors(state, lambda tensor: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)

    def spread(self, whole, like):
        if not hasattr(like, "device_mesh"):
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)

    def load_optimizer(self, optimizer, state):
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        for number, entry in state["state"].items():
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.ndim:
                    entry[name] = self.spread(value, parameters[number])
        optimizer.load_state_dict(state)

    def wait(self):
        self.accelerator.wait_for_everyone()


def _map_tensors(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {name: _map_tensors(value, change) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_map_tensors(value, change) for value in state)
    return state
