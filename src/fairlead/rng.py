"""Named, independent random streams.

Every random quantity is drawn from a stream named after its purpose, so that changing one part
(the router, say) never changes another (the arrivals). Training and evaluation differ in the
first name of the stream, so their seeds are disjoint by construction.
"""

import hashlib

import numpy as np


def _entropy(seed: int, names: tuple[str | int, ...]) -> list[int]:
    digest = hashlib.sha256(repr(names).encode()).digest()
    return [seed, *(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))]


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for the stream called `names` under `seed` (a non-negative integer)."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, names)))


def word(seed: int, *names: str | int) -> np.uint64:
    """A non-zero 64-bit word from the same streams: the state of a compiled generator."""
    state = np.random.SeedSequence(_entropy(seed, names)).generate_state(1, np.uint64)[0]
    return np.uint64(state | np.uint64(1))
