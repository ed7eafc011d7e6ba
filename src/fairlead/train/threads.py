"""How many CPU threads torch uses, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ACTING = 1
"""A step of a few hundred decisions is over before a second thread has woken up for all its operations."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
