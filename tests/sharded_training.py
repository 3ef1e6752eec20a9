"""The trainer's command line with weights shared among processes, on processors: accelerate offers that on GPUs only.

Run by torch.distributed.run; the arguments are those of `python -m magdiff_core.train`.
"""

from __future__ import annotations

import sys

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from magdiff_core.train import __main__, engine


class ShardedEngine(engine.AccelerateEngine):
    def __init__(self) -> None:
        super().__init__()
        accelerator: Accelerator = self.accelerator
        accelerator.state.distributed_type = DistributedType.FSDP
        # as docs/training.md tells it
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=True, cpu_ram_efficient_loading=False,
            state_dict_type="FULL_STATE_DICT",
        )  # fmt: skip

    def prepare(self, optimizer, parameters):
        optimizer, parameters = super().prepare(optimizer, parameters)
        whole = [name for name, value in parameters.items() if not hasattr(value, "full_tensor")]
        assert not whole, f"not shared: {whole[:3]}"
        return optimizer, parameters


if __name__ == "__main__":
    from magdiff_core.train import adapter_command

    adapter_command.AccelerateEngine = ShardedEngine
    __main__.main(sys.argv[1:])
