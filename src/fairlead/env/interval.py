"""What happened between two decisions, for rewards, monitors and metrics.

Computed from the simulator's state by array operations over the requests that are still open: a few
hundred in all, whatever the length of the episode.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.simulator.cluster import Clusters
from fairlead.view.schema import PREFILL_TOKENS_PER_S

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """The time from one decision to the next in K clusters, and its E completions in no particular order."""

    elapsed_s: Floats
    """(K,)."""
    actions: Ints
    """(K,) the decision at its start."""
    in_flight_before: Ints
    """(K, R) requests in flight when that decision was taken."""
    in_flight: Ints
    """(K, R) requests in flight at the end."""
    waiting: Ints
    """(K,) of these, without a first token."""
    oldest_wait_s: Floats
    """(K,) longest wait of those so far; 0 if there are none."""
    overtaken: npt.NDArray[np.bool_]
    """(K,) whether one that arrived later than the longest waiting has its first token."""
    cluster: Ints
    """(E,) of each completion."""
    e2e_s: Floats
    """(E,)."""
    ttft_s: Floats
    """(E,)."""
    tpot_s: Floats
    """(E,) 0 for a single output token."""
    delay_s: Floats
    """(E,) TTFT beyond the declared prefill time of the prompt: time in queues, for the most part."""
    output_tokens: Ints
    """(E,)."""

    def sums(self, values: Floats) -> Floats:
        """Sums (K,) over each cluster's completions of `values` (E,)."""
        total: Floats = np.bincount(self.cluster, values, len(self.elapsed_s)).astype(np.float64)
        return total

    @property
    def completions(self) -> Floats:
        """(K,) how many requests completed."""
        return np.bincount(self.cluster, minlength=len(self.elapsed_s)).astype(np.float64)


class Watcher:
    """Follows the open requests of K clusters from decision to decision.

    A request that has streamed its first token counts as served, even if its replica fails later.
    """

    def __init__(self, clusters: Clusters) -> None:
        """Nothing is open: the clusters have just been loaded."""
        self._clusters = clusters
        # (2, n): cluster and index of the requests without a last token, and of those without a first one.
        self._open: Ints = np.empty((2, 0), np.int64)
        self._waiting: Ints = np.empty((2, 0), np.int64)
        self._seen = np.zeros(clusters.K, np.int64)
        self._in_flight: Ints = np.zeros((clusters.K, clusters.R), np.int64)
        self._latest_served = np.full(clusters.K, -np.inf)
        # Whatever a replica is made of, this column is what its prompts are declared to take.
        self._prefill_rate = clusters.view.replicas[:, :, PREFILL_TOKENS_PER_S]

    def interval(self, actions: Ints, elapsed_s: Floats) -> Interval:
        """What happened since the last call; the clusters stand at the next decision."""
        state = self._clusters.state
        # Plain arrays: field access on records is slow, and only a few of the fields are needed.
        requests: Any = state.requests.view(np.ndarray)
        replicas: Any = state.replicas.view(np.ndarray)
        now = np.asarray(state.clusters["now"])
        self._take_new(np.asarray(state.clusters["next_request"], np.int64))
        waiting, oldest = self._follow_waiting(requests, now)
        done = requests["finish"][self._open[0], self._open[1]] <= now[self._open[0]]
        cluster, _ = ended = self._open[0][done], self._open[1][done]
        self._open = self._open[:, ~done]
        arrival, first, finish = (requests[name][ended] for name in ("arrival", "first_token", "finish"))
        tokens, prompt = (requests[name][ended].astype(np.int64) for name in ("output", "prompt"))
        own = prompt / self._prefill_rate[cluster, requests["replica"][ended]]
        before = self._in_flight
        self._in_flight = (replicas["running"] + replicas["waiting"]).reshape(before.shape)
        return Interval(
            elapsed_s=elapsed_s,
            actions=actions,
            in_flight_before=before,
            in_flight=self._in_flight,
            waiting=waiting,
            oldest_wait_s=oldest,
            overtaken=(oldest > 0) & (self._latest_served > now - oldest),
            cluster=cluster,
            e2e_s=finish - arrival,
            ttft_s=first - arrival,
            tpot_s=(finish - first) / np.maximum(tokens - 1, 1),
            delay_s=np.maximum(first - arrival - own, 0.0),
            output_tokens=tokens,
        )

    def _take_new(self, until: Ints) -> None:
        """Requests handed out since the last call (in lock-step: mostly one for each cluster)."""
        new = until - self._seen
        if new.any():
            cluster = np.repeat(np.arange(len(new)), new)
            first = np.repeat(self._seen - np.concatenate([[0], np.cumsum(new)[:-1]]), new)
            requests = np.stack([cluster, first + np.arange(len(cluster))])
            self._open = np.concatenate([self._open, requests], 1)
            self._waiting = np.concatenate([self._waiting, requests], 1)
            self._seen = until.copy()

    def _follow_waiting(self, requests: Any, now: Floats) -> tuple[Ints, Floats]:
        """How many have no first token yet, and the longest wait among them: (K,) each."""
        cluster, index = self._waiting
        arrival = requests["arrival"][cluster, index]
        served = requests["first_token"][cluster, index] <= now[cluster]
        np.maximum.at(self._latest_served, cluster[served], arrival[served])
        self._waiting = self._waiting[:, ~served]
        cluster = self._waiting[0]
        oldest = np.zeros(len(now))
        np.maximum.at(oldest, cluster, now[cluster] - arrival[~served])
        return np.bincount(cluster, minlength=len(now)), oldest
