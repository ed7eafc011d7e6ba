"""The simulator's state: record arrays with named fields, K clusters of R replicas side by side.

Replica `k` belongs to cluster `k // R`. A decoding batch advances in lockstep (every decoding
request gains one token per iteration), so a replica counts its decode iterations in `tick` and a
request stores the tick at which it will finish: advancing a batch costs the same however large it is.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.simulator.batch_time import NO_TABLES, Tables
from fairlead.simulator.block_pool import clear_pools, new_pool
from fairlead.view.prefixes import forget, room_for
from fairlead.view.tail import BINS, TAIL_PRIOR_S

NONE = -1
NEVER = np.iinfo(np.int64).max

REQUEST = np.dtype(
    [
        ("arrival", "f8"),
        ("sent", "f8"),  # when it was last routed
        ("scheduled", "f8"),  # when it was first in a batch; NaN until it happened
        ("first_token", "f8"),  # NaN until it happened
        ("finish", "f8"),  # NaN until it happened
        ("prompt", "i4"),
        ("estimate", "i4"),  # what its router takes the prompt for
        ("output", "i4"),
        ("generated", "i4"),  # tokens streamed, as of the last time it left the decoding batch
        ("router", "i4"),  # which router it came to
        ("replica", "i4"),
        ("preemptions", "i4"),
        ("retries", "i4"),  # how often its replica died
        ("next_waiting", "i4"),  # waiting queue of its replica, or those that are to be decided anew
        ("next_routed", "i4"),  # order in which its replica received requests
        ("source", "i4"),  # in a forecast: which request it stands for
        ("hit", "i4"),  # tokens found cached when it was last looked up (in a forecast: expected to be)
        ("cached", "i4"),  # tokens found cached when it was first admitted
        ("expected_hit", "i4"),  # tokens that its router expected to be cached
        ("content", "i8"),  # where the contents of its blocks begin
        ("session", "i8"),
        ("home", "i8"),  # in `homes`: where its router sends its conversation; 0: it belongs to none
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        # configuration
        ("token_budget", "i8"),
        ("max_seqs", "i8"),
        ("block_size", "i8"),
        ("kv_blocks", "i8"),
        ("caching", "b1"),  # prefix caching is on
        ("table", "i8"),  # index into `tables`, or NO_TABLE: it runs by its coefficients
        ("declared", "i8"),  # the replica that it is said to be as fast as
        ("scheduler", "i8"),  # code of `schedulers`
        ("watermark", "i8"),  # blocks that an admission must leave free
        ("padded", "b1"),  # vllm_v0: a batch counts as its longest prompt times its requests
        ("restart_loses_prompt", "b1"),  # Vidur's bug, for comparisons
        ("pace", "f8"),  # every iteration that starts while it is p lasts p times as long
        # engine
        ("clock", "f8"),  # end of the iteration under way, else the last boundary
        ("quiet_until", "f8"),  # nothing that a router counts happens before; the replica may lag behind
        ("duration", "f8"),  # of the iteration under way
        ("beyond_table", "b1"),  # an iteration needed a time that its table does not have
        ("busy", "b1"),  # an iteration is under way
        ("running", "i8"),  # slots in use: decoding ones first, then prefilling ones
        ("prefilling", "i8"),
        ("tick", "i8"),  # decode iterations done
        ("next_finish", "i8"),  # least finish tick of the decoding slots
        ("kv_tokens", "i8"),  # tokens in the KV cache, over the decoding slots
        ("free_blocks", "i8"),
        ("waiting", "i8"),
        ("waiting_head", "i8"),
        ("waiting_tail", "i8"),
        ("stalled", "b1"),  # the decoding slots are not in the batch under way
        ("partial_first", "b1"),  # sarathi: the half-done prompt got nothing and leads the list
        ("interrupted", "i8"),  # requests that have streamed tokens but were preempted since
        ("preemptions", "i8"),
        ("available", "b1"),  # not dead
        ("queried_tokens", "i8"),  # prompt tokens looked up in the prefix cache
        ("hit_tokens", "i8"),  # of these, found
        # last scrape
        ("scraped_at", "f8"),
        ("scraped_running", "i8"),
        ("scraped_waiting", "i8"),
        ("scraped_kv_usage", "f8"),
        ("scraped_preemptions", "i8"),  # counter at the last scrape
        ("scraped_new_preemptions", "i8"),  # its growth since the scrape before
        ("scraped_queried_tokens", "i8"),  # counters at the last scrape
        ("scraped_hit_tokens", "i8"),
        ("scraped_hit_rate", "f8"),  # between the last two scrapes with queries between them
    ],
    align=True,
)

LEDGER = np.dtype(
    [
        # what one router forwarded to one replica and saw streamed back
        ("in_flight", "i8"),
        ("awaiting", "i8"),  # of these, without a first token
        ("decoding", "i8"),  # of these, in the replica's decoding batch
        ("pending_tokens", "i8"),  # prompts of those without a first token, less what was expected to hit
        ("context_tokens", "i8"),  # prompt + streamed, of the others
        ("oldest", "i8"),  # head of the list of routed requests; finished heads are dropped lazily
        ("newest", "i8"),
        ("ttft_ewma", "f8"),
        ("itl_ewma", "f8"),
        # what `view.pace` is reckoned from: two times (s), and whether the last iteration counts in them
        ("took", "f8"),
        ("due", "f8"),
        ("heard", "b1"),
        ("in_flight_ewma", "f8"),
    ],
    align=True,
)

ROUTER = np.dtype(
    [
        # what one router knows of its cluster as a whole
        ("decided", "f8"),  # time of its last decision
        ("decisions", "i8"),
        ("finished", "i8"),
        ("finished_tokens", "i8"),
        ("ttft_tail", "f8"),  # where the tail of its TTFTs begins, as of the last view
        ("ttft_counts", "f8", (BINS,)),  # histogram of `view.tail`
    ],
    align=True,
)

CONFIGURATION = (
    "token_budget",
    "max_seqs",
    "block_size",
    "kv_blocks",
    "caching",
    "table",
    "declared",
    "scheduler",
    "watermark",
    "padded",
    "restart_loses_prompt",
)
"""The fields of REPLICA that are the same for every run."""

EVENT = np.dtype(
    [
        # from `time` on a replica of the cluster is so
        ("time", "f8"),  # infinite: no more events
        ("replica", "i8"),
        ("pace", "f8"),
        ("up", "b1"),
    ],
    align=True,
)

SLOT = np.dtype(
    [
        ("zero_tick", "i8"),  # tick at which it would have had no token yet: streamed = tick - zero_tick
        ("finish_tick", "i8"),
        ("request", "i4"),
        ("left", "i4"),  # tokens still to prefill; 0 = decoding
        ("blocks", "i4"),  # taken at admission; with vidur_v1, all it holds
        ("chunk", "i4"),  # of these, in the iteration under way
        ("router", "i4"),  # that sent it
        ("row", "i4"),  # its block table, with prefix caching
    ],
    align=True,
)

CLUSTER = np.dtype(
    [
        ("next_request", "i8"),  # the next to arrive
        ("at_hand", "i8"),  # the request to be decided now, or NONE
        ("retry_head", "i8"),  # requests to be decided anew, in order of arrival
        ("available", "i8"),  # replicas that are not dead
        ("next_event", "i8"),
        ("now", "f8"),  # time of the decision at hand
        ("decided", "f8"),  # time of the decision before
        ("scrape_interval", "f8"),
        ("scraped_at", "f8"),
        ("max_tokens", "f8"),
        ("awaiting", "i8"),  # requests without first token, after the last decision
        ("in_system", "i8"),  # requests not finished, after the last decision
        # events since the last decision: their number and the sum of their times
        ("first_tokens", "i8"),
        ("first_token_times", "f8"),
        ("finishes", "i8"),
        ("finish_times", "f8"),
        ("tail_begins", "f8"),  # where rewards take the tail of TTFTs to begin, s
        ("tail_cost", "f8"),  # of the first tokens, as of `view.tail`, less what was charged before; s
        ("entered", "i8"),  # requests that arrived while there was no replica to send them to
        ("entered_times", "f8"),
        ("arrived", "i8"),  # requests that count as waiting, routed or not
        ("oldest_awaiting", "i8"),  # all before it had their first token at the last decision
        ("random", "u8"),
    ],
    align=True,
)


class State(NamedTuple):
    """Everything that changes while clusters are simulated (plus the coefficients they run by)."""

    clusters: npt.NDArray[Any]
    """(K,) of CLUSTER."""
    replicas: npt.NDArray[Any]
    """(K*R,) of REPLICA."""
    ledgers: npt.NDArray[Any]
    """(K*R, M) of LEDGER: what each of the M routers knows of each replica."""
    routers: npt.NDArray[Any]
    """(K, M) of ROUTER."""
    slots: npt.NDArray[Any]
    """(K*R, S) of SLOT, in order of admission."""
    phases: npt.NDArray[np.int64]
    """(K*R, block size): decoding slots by (tokens in KV - tick) mod block size; tells how many
    blocks an iteration needs without looking at the slots."""
    requests: npt.NDArray[Any]
    """(K, N) of REQUEST."""
    events: npt.NDArray[Any]
    """(K, E) of EVENT, in order of time; the last one is at infinity."""
    timing: npt.NDArray[np.float64]
    """(K*R, 7) coefficients of the iteration time, where a replica has no table."""
    tables: npt.NDArray[Any]
    """(M,) of TABLE: iteration times of the other replicas."""
    table_values: npt.NDArray[np.float64]
    """(V,) the numbers of all tables."""
    static: npt.NDArray[np.float64]
    """(K*R, 5) static columns of the view."""
    contents: npt.NDArray[np.int32]
    """(B,) what the blocks of all requests contain, one request after the other."""
    homes: npt.NDArray[np.int64]
    """(K, H) the replica that a conversation's last request was sent to, by `home` of REQUEST; or NONE."""
    # The fields of `block_pool.Pool`, for prefix caching,
    blocks: npt.NDArray[Any]
    block_queues: npt.NDArray[Any]
    block_index: npt.NDArray[np.int32]
    block_tables: npt.NDArray[np.int32]
    table_rows: npt.NDArray[np.int32]
    slot_order: npt.NDArray[np.int32]
    phase_ends: npt.NDArray[np.int32]
    # and of `view.prefixes.PrefixMemory`: a row for each pair of replica and router.
    sent_keys: npt.NDArray[np.uint64]
    sent_refs: npt.NDArray[np.int32]
    sent_older: npt.NDArray[np.int32]
    sent_newer: npt.NDArray[np.int32]
    sent_index: npt.NDArray[np.int32]
    sent_ends: npt.NDArray[np.int32]


def new_state(
    clusters: int,
    replicas: int,
    slots: int,
    block_size: int,
    requests: int,
    routers: int = 1,
    tables: Tables = NO_TABLES,
    memory_blocks: int = 0,
) -> State:
    """An empty state; configuration fields are filled in by the caller."""
    return State(
        clusters=_records(clusters, CLUSTER),
        replicas=_records(clusters * replicas, REPLICA),
        ledgers=_records((clusters * replicas, routers), LEDGER),
        routers=_records((clusters, routers), ROUTER),
        slots=_records((clusters * replicas, slots), SLOT),
        phases=np.zeros((clusters * replicas, block_size), np.int64),
        requests=_records((clusters, requests), REQUEST),
        events=no_events(clusters, 1),
        timing=np.zeros((clusters * replicas, 7)),
        tables=tables.tables,
        table_values=tables.values,
        static=np.zeros((clusters * replicas, 5)),
        contents=np.zeros(0, np.int32),
        homes=no_homes(clusters, 1),
        **new_pool(clusters * replicas, 0, 0, 0, 0)._asdict(),
        **room_for(clusters * replicas * routers, memory_blocks)._asdict(),
    )


def no_events(clusters: int, room: int) -> npt.NDArray[Any]:
    """(clusters, room) of EVENT, all at infinity."""
    events = _records((clusters, room), EVENT)
    events["time"] = np.inf
    return events


def no_homes(clusters: int, room: int) -> npt.NDArray[np.int64]:
    """(clusters, room) conversations that have not begun."""
    return np.full((clusters, room), NONE, np.int64)


def _records(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeroed records; as a `recarray`, so that `array[i].field` works uncompiled (NUMBA_DISABLE_JIT=1)."""
    return np.zeros(shape, dtype).view(np.recarray)


def clear(state: State) -> None:
    """Empty every queue and cache; requests, configuration and random states are kept."""
    replicas, clusters, requests = state.replicas, state.clusters, state.requests
    for field in REPLICA.names or ():
        if field not in CONFIGURATION:
            replicas[field] = 0
    replicas["pace"] = 1.0
    replicas["available"] = True
    replicas["free_blocks"] = replicas["kv_blocks"]
    replicas["next_finish"] = NEVER
    for field in ("waiting_head", "waiting_tail"):
        replicas[field] = NONE
    for records in (state.ledgers, state.routers):
        for field in records.dtype.names or ():
            records[field] = 0
    state.routers["ttft_tail"] = TAIL_PRIOR_S
    for field in ("oldest", "newest"):
        state.ledgers[field] = NONE
    state.phases[:] = 0
    for field in CLUSTER.names or ():
        if field not in ("scrape_interval", "max_tokens", "random"):
            clusters[field] = 0
    clusters["scraped_at"] = -1.0
    clusters["tail_begins"] = TAIL_PRIOR_S
    clusters["available"] = len(replicas) // len(clusters)
    for field in ("at_hand", "retry_head"):
        clusters[field] = NONE
    requests["scheduled"] = np.nan
    requests["first_token"] = np.nan
    requests["finish"] = np.nan
    requests["generated"] = 0
    requests["preemptions"] = 0
    requests["retries"] = 0
    for field in ("hit", "cached", "expected_hit"):
        requests[field] = 0
    for field in ("replica", "next_waiting", "next_routed"):
        requests[field] = NONE
    state.homes[:] = NONE
    clear_pools(state, replicas["kv_blocks"] * replicas["caching"])
    forget(state)
