"""Inception Score (Salimans et al. 2016), of clips where the classifier is a video network (Saito et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

SPLITS = 10
"""Parts that published scores are averaged over."""
LEAST_PER_SPLIT = 10


def inception_score(probabilities: Tensor, splits: int) -> tuple[float, float]:
    """exp of the mean Kullback-Leibler divergence of each clip's classes from those of its part of the set.

    Args:
        probabilities: `[n, classes]`, rows that sum to 1.
        splits: number of parts, 1 to n; consecutive clips form a part.

    Returns:
        mean and standard deviation (over parts, divided by their number as in the original) of the score.

    Raises:
        ValueError: more parts than clips.
    """
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"{len(probabilities)} clips cannot be scored in {splits} parts")
    scores = []
    for part in probabilities.double().tensor_split(splits):
        marginal = part.mean(0, keepdim=True)
        # x log x is 0 at 0
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(1)
        scores.append(divergence.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(unbiased=False))


def usual_splits(clips: int) -> int:
    """10 parts as published, as soon as each has 10 clips; else one."""
    return SPLITS if clips >= SPLITS * LEAST_PER_SPLIT else 1


def as_probabilities(outputs: Tensor) -> Tensor:
    """Rows that are probabilities already (all in 0..1, sum 1) as they are, others by softmax."""
    is_probability = (outputs >= 0).all() and torch.allclose(outputs.sum(1), outputs.new_ones(len(outputs)), atol=1e-3)
    return outputs if is_probability else outputs.double().softmax(1)
