"""Shuffled minibatches of indices."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def minibatches(count: int, size: int, random: np.random.Generator, block: int = 1) -> Iterator[Tensor]:
    """Each index in [0, count) once, in random order, about `size` at a time (the last may be smaller).

    Neighbours in blocks of `block`, a divisor of `count`, stay together and in order.
    """
    order = _shuffled(count, random, block)
    step = max(block, size // block * block)
    for start in range(0, count, step):
        yield torch.from_numpy(order[start : start + step])


def joint_minibatches(
    counts: Sequence[int], size: int, random: np.random.Generator, block: int = 1
) -> Iterator[list[Tensor]]:
    """Minibatches of about `size` over several parts, each with its share of every part.

    Yields one tensor of indices for each part; each index of each part comes once. An empty one may occur
    where a part is very small. Blocks as in `minibatches`.
    """
    if len(counts) == 1:
        for indices in minibatches(counts[0], size, random, block):
            yield [indices]
        return
    number = max(1, math.ceil(sum(counts) / size))
    orders = [np.array_split(_shuffled(count, random, block).reshape(-1, block), number) for count in counts]
    for parts in zip(*orders, strict=True):
        yield [torch.from_numpy(part.ravel()) for part in parts]


def _shuffled(count: int, random: np.random.Generator, block: int) -> npt.NDArray[np.int64]:
    firsts = random.permutation(count // block) * block
    shuffled: npt.NDArray[np.int64] = (firsts[:, None] + np.arange(block)).ravel()
    return shuffled
