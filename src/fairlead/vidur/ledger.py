"""The router's view of a cluster that Vidur simulates: the same columns, from what Vidur's events tell.

The ledger is kept as in `simulator.ledger`, with the same constants and in the same order of events.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.fleet import Fleet
from fairlead.simulator.ledger import (
    ITL_WEIGHT,
    LEAST_REMAINING,
    LOAD_HORIZON_S,
    PRIOR_OUTPUT_TOKENS,
    PRIOR_WEIGHT,
    TTFT_WEIGHT,
)
from fairlead.view import pace
from fairlead.view.schema import REPLICA_COLUMNS, REQUEST_COLUMNS, View
from fairlead.view.tail import BINS, forget_and_find, tail_bin


@dataclass
class InFlight:
    """A request as the router knows it."""

    arrival_s: float
    prompt_tokens: int
    streamed: int = 0


@dataclass(frozen=True)
class Scrape:
    """What an engine reported when it was read."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    """Since the start."""


@dataclass
class Replica:
    """What the router knows about one replica."""

    in_flight: dict[int, InFlight] = field(default_factory=dict)
    """By number of the request, in order of arrival."""
    ttft_ewma_s: float = 0.0
    itl_ewma_s: float = 0.0
    took_s: float = 0.0
    due_s: float = 0.0
    """How long iterations took, and should have taken by what is declared (`view.pace`)."""
    in_flight_ewma: float = 0.0
    restarts: int = 0
    """Preemptions of requests that have finished."""
    scraped: Scrape = Scrape()
    """The last scrape."""
    read: Scrape = Scrape()
    """The last one that a decision has read."""
    new_preemptions: int = 0
    """Between that one and the one before."""


class Ledger:
    """What one router forwarded and saw streamed back."""

    def __init__(self, fleet: Fleet) -> None:
        """An idle cluster at time 0; the static columns are those of `fleet`."""
        self.fleet = fleet
        self.replicas = [Replica() for _ in range(fleet.num_replicas)]
        self.finished = 0
        self.finished_tokens = 0
        self.decided_s = 0.0
        self.scraped_s = 0.0
        self.ttft_counts = np.zeros(BINS)
        self.homes: dict[int, int] = {}
        """Where the last request of each conversation was sent."""

    def routed(self, number: int, r: int, now_s: float, prompt_tokens: int, session: int = 0) -> None:
        """Request `number` goes to replica `r`."""
        if session:
            self.homes[session] = r
        self.replicas[r].in_flight[number] = InFlight(now_s, prompt_tokens)

    def batch_ended(self, r: int, batch: Any) -> None:
        """An iteration of replica `r` has ended: tokens are streamed, requests leave."""
        replica, now_s = self.replicas[r], batch.completed_at
        heard = 1 in batch.num_q_tokens  # what Vidur takes for a decode
        if heard:
            self._heard(r, now_s - batch.scheduled_at)
        for request in batch.requests:
            if not request.is_prefill_complete:
                continue
            known = replica.in_flight[request.number]
            known.streamed += 1
            if known.streamed == 1:
                if heard:
                    replica.due_s += known.prompt_tokens / _static(self.fleet, r)["prefill_tokens_per_s"]
                _blend_ttft(replica, now_s - known.arrival_s)
                self.ttft_counts[tail_bin(now_s - known.arrival_s)] += 1.0
            if request.completed:
                del replica.in_flight[request.number]
                replica.restarts += request.num_restarts
                self.finished += 1
                self.finished_tokens += known.streamed

    def _heard(self, r: int, duration: float) -> None:
        """An iteration with a decode in it took `duration` s."""
        replica = self.replicas[r]
        moved = replica.itl_ewma_s + ITL_WEIGHT * (duration - replica.itl_ewma_s)
        replica.itl_ewma_s = moved if replica.itl_ewma_s else duration
        contexts = [q.prompt_tokens + q.streamed for q in replica.in_flight.values() if q.streamed]
        due = pace.due_of_iteration(
            _static(self.fleet, r)["decode_iteration_s"], float(len(contexts)), float(sum(contexts))
        )
        replica.took_s = pace.KEPT * replica.took_s + duration
        replica.due_s = pace.KEPT * replica.due_s + due

    def scrape(self, at_s: float, schedulers: Sequence[Any], requests: Sequence[Any]) -> None:
        """Read what every engine reports at this moment; `requests` are all of Vidur's, by number."""
        for replica, scheduler in zip(self.replicas, schedulers, strict=True):
            restarts = replica.restarts + sum(requests[n].num_restarts for n in replica.in_flight)
            replica.scraped = Scrape(
                running=len(scheduler._allocation_map),
                waiting=scheduler.num_pending_requests,
                kv_usage=scheduler.memory_usage_percent / 100.0,
                preemptions=restarts,
            )
        self.scraped_s = at_s

    def view(self, now_s: float, prompt_tokens: int, session: int = 0) -> View:
        """What the router sees when a request arrives; once per request."""
        mean = (PRIOR_OUTPUT_TOKENS * PRIOR_WEIGHT + self.finished_tokens) / (PRIOR_WEIGHT + self.finished)
        blend = 1.0 - math.exp(-(now_s - self.decided_s) / LOAD_HORIZON_S)
        self.decided_s = now_s
        rows = []
        for r, replica in enumerate(self.replicas):
            if replica.read is not replica.scraped:
                replica.new_preemptions = replica.scraped.preemptions - replica.read.preemptions
                replica.read = replica.scraped
            replica.in_flight_ewma += blend * (len(replica.in_flight) - replica.in_flight_ewma)
            rows.append(_ordered(REPLICA_COLUMNS, self._row(r, now_s, mean, session)))
        view = np.array(rows)
        pace.correct_speeds(view, np.array([[replica.took_s, replica.due_s] for replica in self.replicas]))
        request = {
            "prompt_tokens": prompt_tokens,
            "max_tokens": self.fleet.max_tokens,
            "expected_output_tokens": mean,
            "session": session,
            "ttft_tail_s": forget_and_find(self.ttft_counts),
        }
        return View(view[None], np.array([_ordered(REQUEST_COLUMNS, request)]))

    def _row(self, r: int, now_s: float, mean: float, session: int) -> dict[str, float]:
        replica = self.replicas[r]
        requests = list(replica.in_flight.values())
        silent = [request for request in requests if not request.streamed]
        speaking = [request for request in requests if request.streamed]
        return {
            "in_flight": len(requests),
            "awaiting_first_token": len(silent),
            "pending_prefill_tokens": sum(q.prompt_tokens for q in silent),
            "context_tokens": sum(q.prompt_tokens + q.streamed for q in speaking),
            "expected_remaining_tokens": sum(
                max(mean - q.streamed, LEAST_REMAINING * mean) for q in requests
            ),
            "oldest_wait_s": now_s - silent[0].arrival_s if silent else 0.0,
            "ttft_ewma_s": replica.ttft_ewma_s,
            "itl_ewma_s": replica.itl_ewma_s,
            "in_flight_ewma": replica.in_flight_ewma,
            "session_home": float(self.homes.get(session) == r),
            # Vidur has no prefix cache and no failures (scenarios with either are refused): these are facts.
            "expected_prefix_hit_tokens": 0.0,
            "available": 1.0,
            "scraped_running": replica.read.running,
            "scraped_waiting": replica.read.waiting,
            "scraped_kv_usage": replica.read.kv_usage,
            "scraped_preemptions": replica.new_preemptions,
            "scraped_prefix_hit_rate": 0.0,
            "scrape_age_s": now_s - self.scraped_s,
            **_static(self.fleet, r),
        }


def _blend_ttft(replica: Replica, sample_s: float) -> None:
    if replica.ttft_ewma_s == 0.0:
        replica.ttft_ewma_s = sample_s
    else:
        replica.ttft_ewma_s += TTFT_WEIGHT * (sample_s - replica.ttft_ewma_s)


def _static(fleet: Fleet, r: int) -> dict[str, float]:
    names = [column.name for column in REPLICA_COLUMNS if column.source == "static"]
    return dict(zip(names, fleet.static[r].tolist(), strict=True))


def _ordered(columns: Sequence[Any], values: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """The values in the order of the columns.

    Raises:
        FairleadError: for a column that Vidur cannot fill.
    """
    absent = [column.name for column in columns if column.name not in values]
    if absent:
        raise FairleadError(
            f"Vidur cannot tell a router {', '.join(absent)}: evaluate with Fairlead's own simulator"
        )
    return np.array([values[column.name] for column in columns], np.float64)
