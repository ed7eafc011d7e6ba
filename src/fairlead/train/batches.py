"""Shuffled minibatches of indices."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def minibatches(count: int, size: int, random: np.random.Generator) -> Iterator[Tensor]:
    """Each index in [0, count) once, in random order, `size` at a time (the last may be smaller)."""
    order = torch.from_numpy(random.permutation(count))
    for start in range(0, count, size):
        yield order[start : start + size]


def joint_minibatches(
    counts: Sequence[int], size: int, random: np.random.Generator
) -> Iterator[list[Tensor]]:
    """Minibatches of about `size` over several parts, each with its share of every part.

    Yields one tensor of indices for each part; each index of each part comes once. An empty one may occur
    where a part is very small.
    """
    if len(counts) == 1:
        for indices in minibatches(counts[0], size, random):
            yield [indices]
        return
    number = max(1, math.ceil(sum(counts) / size))
    orders = [np.array_split(random.permutation(count), number) for count in counts]
    for parts in zip(*orders, strict=True):
        yield [torch.from_numpy(part) for part in parts]
