"""Shuffled minibatches of indices."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def minibatches(count: int, size: int, random: np.random.Generator) -> Iterator[Tensor]:
    """Each index in [0, count) once, in random order, `size` at a time (the last may be smaller)."""
    order = torch.from_numpy(random.permutation(count))
    for start in range(0, count, size):
        yield order[start : start + size]
