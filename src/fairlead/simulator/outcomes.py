"""What happened to the requests of one cluster: the raw material of every metric."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_FLOATS = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")


@dataclass(frozen=True)
class Outcomes:
    """The N served requests of one cluster, in order of arrival.

    All times are absolute, in seconds since the start of the run. The constructor converts the arrays to
    float64 and int64 and raises `ValueError` (a bug of the caller, not of the user's input) when they
    disagree in length, hold a non-finite time, or contradict causality: arrival <= first batch <= first token
    <= finish.

    Attributes:
        arrival_s: (N,) when the request arrived and was routed; nondecreasing.
        prompt_tokens: (N,) at least 1.
        output_tokens: (N,) at least 1, the first token included.
        replica: (N,) the replica it was routed to, 0 <= replica < num_replicas.
        first_token_s: (N,) when its first output token was emitted.
        finish_s: (N,) when its last output token was emitted.
        preemptions: (N,) how often it lost its KV blocks and was recomputed.
        num_replicas: size of the cluster, idle replicas included.
        scheduled_s: (N,) when it was first part of a batch; None where that was not recorded.
        retries: (N,) how often its replica died and it began anew elsewhere; None: never.
        cached_tokens: (N,) prompt tokens found in the prefix cache when it was first admitted, less than
            the prompt; None where that was not recorded.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    replica: IntArray
    first_token_s: FloatArray
    finish_s: FloatArray
    preemptions: IntArray
    num_replicas: int
    scheduled_s: FloatArray | None = None
    retries: IntArray | None = None
    cached_tokens: IntArray | None = None

    def __post_init__(self) -> None:
        """Convert and check the columns."""
        if self.retries is None:
            object.__setattr__(self, "retries", np.zeros(np.shape(self.arrival_s), np.int64))
        for name in self._columns():
            dtype = np.float64 if name in _FLOATS else np.int64
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        self._check_shapes()
        for name in set(_FLOATS) & set(self._columns()):
            self._require(
                np.isfinite(getattr(self, name)), f"{name} is not finite (was the cluster drained?)"
            )
        self._require(np.diff(self.arrival_s, prepend=-np.inf) >= 0, "arrival_s decreases")
        self._require(self.arrival_s <= self.first_token_s, "the first token precedes the arrival")
        if self.scheduled_s is not None:
            self._require(self.arrival_s <= self.scheduled_s, "its first batch precedes the arrival")
            self._require(self.scheduled_s <= self.first_token_s, "the first token precedes its first batch")
        self._require(self.first_token_s <= self.finish_s, "the finish precedes the first token")
        self._require(self.prompt_tokens >= 1, "prompt_tokens is less than 1")
        self._require(self.output_tokens >= 1, "output_tokens is less than 1")
        self._require(self.preemptions >= 0, "preemptions is negative")
        self._require(self.retried >= 0, "retries is negative")
        if self.cached_tokens is not None:
            cached = (self.cached_tokens >= 0) & (self.cached_tokens < self.prompt_tokens)
            self._require(cached, "cached_tokens is not between 0 and the prompt")
        self._require((self.replica >= 0) & (self.replica < self.num_replicas), "replica is out of range")

    def _columns(self) -> list[str]:
        """The fields that hold an array."""
        names = [field.name for field in fields(self) if field.name != "num_replicas"]
        return [name for name in names if getattr(self, name) is not None]

    def _check_shapes(self) -> None:
        if self.num_replicas < 1:
            raise ValueError(f"num_replicas is {self.num_replicas}, must be at least 1")
        shape = self.arrival_s.shape
        if len(shape) != 1:
            raise ValueError(f"arrival_s has shape {shape}, must have one dimension")
        for name in self._columns():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, arrival_s has {shape}")

    @staticmethod
    def _require(holds: NDArray[np.bool_], complaint: str) -> None:
        if not holds.all():
            raise ValueError(f"request {int(np.argmin(holds))}: {complaint}")

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    @property
    def retried(self) -> IntArray:
        """(N,) `retries`, zeros where they were not given."""
        assert self.retries is not None
        return self.retries

    @property
    def scheduling_delay_s(self) -> FloatArray:
        """(N,) arrival to the first batch that it was in (vLLM's and Vidur's queueing time).

        Raises:
            ValueError: if the first batches were not recorded.
        """
        if self.scheduled_s is None:
            raise ValueError("these outcomes do not say when the requests were first scheduled")
        return self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> FloatArray:
        """(N,) time to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> FloatArray:
        """(N,) end-to-end latency: arrival to last token."""
        return self.finish_s - self.arrival_s
