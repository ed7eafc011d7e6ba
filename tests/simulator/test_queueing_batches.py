"""Continuous batching against queueing theory: two degenerate iteration times make a batch a known queue.

- An iteration that lasts the same however many requests are in it: each request is served at its own full
  rate, so a replica of at most k sequences is k servers with one queue, first come first served (M/M/k).
- An iteration that lasts in proportion to the requests in it: each of n requests gets one token in n times
  the time, so the replica is a processor that they share equally (M/G/1-PS, whose mean sojourn
  E[S] / (1 - load) depends on the sizes by their mean alone; Kleinrock, "Queueing Systems" II, 1976, 4.4).

An arrival waits for the end of an iteration, as in no such queue: outputs of 1,000 tokens keep that small.
Intervals are over independent runs: a true law misses one once in ten thousand times.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from tests.simulator.intervals import interval

from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.outcomes import Outcomes
from fairlead.workload.requests import Requests

TOKENS = 1000
"""Mean output."""
TOKEN_S = 1.0 / TOKENS
"""Seconds per token of a request that is alone: the mean service time is 1 s."""
RUNS = 16

Sizes = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

SIZES: dict[str, Sizes] = {
    "fixed": lambda draw, count: np.full(count, 1.0),
    "exponential": lambda draw, count: draw.exponential(1.0, count),
    # A tenth of the requests are 5.5 times as long as the mean: the squared coefficient of variation is 5.
    "hyperexponential": lambda draw, count: (
        draw.exponential(1.0, count) * np.where(draw.random(count) < 0.1, 5.5, 0.5)
    ),
}


def replica(*, base_s: float = 0.0, seq_s: float = 0.0, sequences: int) -> Fleet:
    timing = np.zeros((1, 7))
    timing[0, 0], timing[0, 4] = base_s, seq_s
    return custom_fleet(timing, np.full(1, 10**8), token_budget=10_000, max_num_seqs=sequences, block_size=16)


def served(fleet: Fleet, rate: float, sizes: Sizes, count: int) -> list[Outcomes]:
    """Independent runs of Poisson arrivals, with prompts of one token."""
    wanted = []
    for seed in range(RUNS):
        draw = np.random.default_rng(seed)
        outputs = np.maximum(1, np.rint(TOKENS * sizes(draw, count))).astype(np.int64)
        wanted.append(
            Requests(np.cumsum(draw.exponential(1 / rate, count)), np.ones(count, np.int64), outputs)
        )
    clusters = Clusters([fleet] * RUNS, wanted)
    for _ in range(count):
        clusters.observe()
        clusters.route(np.zeros(RUNS, np.int64))
    clusters.drain()
    return [clusters.outcomes(c) for c in range(RUNS)]


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival of an M/M/k queue must wait (Erlang 1917)."""
    offered = servers * load
    terms = [1.0]
    for n in range(1, servers + 1):
        terms.append(terms[-1] * offered / n)
    waits = terms[-1] / (1 - load)
    return waits / (sum(terms[:-1]) + waits)


@pytest.mark.parametrize("servers", [1, 2, 8])
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_iterations_of_constant_time_make_the_batch_k_servers(servers: int, load: float) -> None:
    """Share of those who wait, mean wait, and mean sojourn of M/M/k."""
    fleet = replica(base_s=TOKEN_S, sequences=servers)
    runs = served(fleet, servers * load, SIZES["exponential"], 5000)
    kept = slice(500, None)
    waits = []
    for run in runs:
        assert run.scheduled_s is not None
        # Up to one iteration is not a wait for a server but for the boundary.
        waits.append((run.scheduled_s - run.arrival_s)[kept] > 1.001 * TOKEN_S)
    low, high = interval([wait.mean() for wait in waits])
    assert low < erlang_c(servers, load) < high
    expected = 1 + erlang_c(servers, load) / (servers * (1 - load))
    low, high = interval([run.e2e_s[kept].mean() for run in runs])
    assert low < expected + 0.5 * TOKEN_S < high


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_iterations_in_proportion_to_the_batch_share_the_processor(sizes: str, load: float) -> None:
    """Mean sojourn E[S] / (1 - load) whatever the distribution; a request is slowed by the same factor on
    average, short or long; an arrival finds n others with probability (1 - load) load^n."""
    runs = served(replica(seq_s=TOKEN_S, sequences=500), load, SIZES[sizes], 5000)
    kept = slice(500, None)
    low, high = interval([run.e2e_s[kept].mean() for run in runs])
    # Beside the law: an arrival waits for the rest of an iteration, some 2 (1 + load / (1 - load)) tokens.
    slack = 4 / (1 - load) * TOKEN_S
    assert low - slack < 1 / (1 - load) < high
    long = [run.output_tokens[kept] > TOKENS / 2 for run in runs]
    slowed = [(run.e2e_s / (run.output_tokens * TOKEN_S))[kept] for run in runs]
    low, high = interval([each[of_these].mean() for each, of_these in zip(slowed, long, strict=True)])
    assert low - slack < 1 / (1 - load) < high
    for others in range(3):
        seen = [np.mean(found_in_system(run)[kept] == others) for run in runs]
        low, high = interval(seen)
        assert low < (1 - load) * load**others < high


def found_in_system(run: Outcomes) -> npt.NDArray[np.int64]:
    """(N,) requests that each arrival finds in the system."""
    gone = np.searchsorted(np.sort(run.finish_s), run.arrival_s, side="right")
    return np.arange(len(run)) - gone
