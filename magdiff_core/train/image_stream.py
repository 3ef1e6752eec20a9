"""A loud start for the image stream of the small model: what tells two pictures apart reaches keys and values from the first step.

The 16 tokens of a subject stand among 112 of black pictures (only the first of eight frames is given), and what they have in
common with those is most of each. Measured: with keys and values that begin as `new_adapter_weights` draws them, an exchanged
picture changed the loss of `TOKENS` batches by less than 0.001 of 0.94 after 9000 steps. With this start it was 0.02 after 100
steps of such batches alone, and 0.002 after 230 of them among all others: more, still little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapter import MagDiffAdapter
from ..data import procedural
from ..host.loaded_checkpoint import LoadedCheckpoint
from ..host.training import encode_pictures
from .batches import reference_pictures

VALUE_GAIN = 16.0
KEY_GAIN = 2.0
"""Size of what is added, in units of a layer that keeps the size of its input."""
COMMON = 0.15
"""Directions of the tokens that all pictures share: those with more than this part of the largest singular value."""


@torch.no_grad()
def own_directions(loaded: LoadedCheckpoint, projector: torch.nn.Module, count: int = 256, seed: int = 5) -> Tensor:
    """Projection `[D, D]` of image tokens onto what differs from picture to picture.

    It takes away what the mean of `count` subjects and the black picture consist of.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = reference_pictures(procedural.sample(count, generator), generator)[0][:, 0]
    mean = torch.cat([projector(encode_pictures(loaded, part)) for part in pictures.split(64)]).mean(0)
    black = projector(encode_pictures(loaded, torch.zeros_like(pictures[:1])))[0]
    directions, size, _ = torch.linalg.svd(torch.cat([black, mean]).T, full_matrices=False)
    shared = directions[:, size > COMMON * size[0]]
    return torch.eye(len(shared)) - shared @ shared.T


@torch.no_grad()
def start_loud(loaded: LoadedCheckpoint, adapter: MagDiffAdapter, seed: int = 5) -> None:
    """Adds random weights to the keys and values of all image tokens, blind to what all pictures share.

    So a model that ignores its image tokens goes on as before, until it learns to use them.
    """
    own = own_directions(loaded, adapter.projector)
    generator = torch.Generator().manual_seed(seed)
    for stream in (adapter.apa.find(site) for site in adapter.apa.sites):
        for layer, gain in ((stream.to_v_image, VALUE_GAIN), (stream.to_k_image, KEY_GAIN)):
            drawn = torch.randn(layer.weight.shape, generator=generator) * layer.weight.shape[1] ** -0.5
            layer.weight.add_(gain * drawn @ own)
