"""Where the network learns: on the CPU, or on a GPU between rollouts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fairlead.errors import FairleadError


def check_device(device: str) -> None:
    """Know before anything is computed whether `device` is there.

    Raises:
        FairleadError: if it is not.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise FairleadError(
            "device is cuda, but PyTorch finds no GPU here: install a CUDA build of PyTorch and a driver, or "
            "train with device cpu"
        )


@contextmanager
def learning_on(device: str, network: Any, optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Network and optimiser are on `device` within the block, and the network on the CPU after it."""
    if device == "cpu":
        yield
        return
    network.to(device)
    _move(optimiser, device)
    try:
        yield
    finally:
        network.to("cpu")
        _move(optimiser, "cpu")


def _move(optimiser: torch.optim.Optimizer, device: str) -> None:
    for state in optimiser.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim > 0:
                state[key] = value.to(device)
