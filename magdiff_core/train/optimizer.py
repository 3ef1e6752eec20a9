"""How gradients become steps: AdamW, or Muon for the matrices inside a network and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

BETAS = (0.9, 0.99)
MOMENTUM = 0.95


def adamw(parameters: Mapping[str, nn.Parameter], rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; `weight_decay` is for matrices and kernels, not for vectors and scalars."""
    matrices = [value for value in parameters.values() if value.ndim > 1]
    vectors = [value for value in parameters.values() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)


class MuonAndAdamW:
    """Both behind the part of an optimiser's interface that the trainer uses, with one rate.

    Muon (K. Jordan et al. 2024, torch's own, its steps as long as AdamW's: Liu et al., arXiv 2502.16982) makes the step of a matrix
    orthogonal, so weak directions learn as fast as strong ones. It is meant for matrices between activations: first and last
    layers, tables of embeddings, vectors and scalars stay with AdamW. A kernel `[out, in, ...]` is a matrix `[out, in * ...]`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, weight_decay: float, apart: tuple[str, ...]) -> None:
        """`apart`: parts of the names of matrices that are left to AdamW.

        Raises:
            RuntimeError: torch is older than 2.9 and has no Muon; or a kernel's memory is no matrix (channels last).
        """
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError(f"torch {torch.__version__} has no Muon: training the small model needs torch 2.9 or newer")
        inside = {
            name: value for name, value in parameters.items() if value.ndim > 1 and not any(part in name for part in apart)
        }
        # the same memory, so a step of the matrix is one of the kernel
        self.matrices = [(value, nn.Parameter(value.detach().view(len(value), -1))) for value in inside.values()]
        self.muon = torch.optim.Muon(
            [matrix for _, matrix in self.matrices], lr=rate, weight_decay=weight_decay, momentum=MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        self.adamw = adamw({name: value for name, value in parameters.items() if name not in inside}, rate, weight_decay)

    @property
    def param_groups(self) -> list[dict]:
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for value, matrix in self.matrices:
            value.grad = matrix.grad = None
        self.adamw.zero_grad(set_to_none)

    def step(self) -> None:
        for value, matrix in self.matrices:
            matrix.grad = None if value.grad is None else value.grad.view(matrix.shape)
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the state of AdamW alone."""
        if "muon" not in state:
            raise ValueError(
                "the state in this folder was written by a trainer with AdamW alone and cannot be resumed: go on from the two "
                "model files beside it with --start-from, into another --out"
            )
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
