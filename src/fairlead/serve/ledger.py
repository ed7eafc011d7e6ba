"""The router's ledger at the gateway: the columns of the view, fed by what passes through.

The same columns with the same meaning as in the simulator (docs/simulator.md, section 4; docs/gateway.md says
where a live gateway can only estimate). `rows` holds one row of the view per backend and is kept up to date
event by event; what depends on the time is computed when a decision is due.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.view import pace, schema
from fairlead.view.tail import BINS, forget_and_find, tail_bin

if TYPE_CHECKING:
    from fairlead.serve.scraping import Reading

TTFT_WEIGHT = 0.2
ITL_WEIGHT = 0.05
LOAD_HORIZON_S = 5.0
PRIOR_OUTPUT_TOKENS = 256.0
PRIOR_WEIGHT = 8.0
LEAST_REMAINING = 0.3

# Columns of the requests in flight.
ROW, SENT, PROMPT, STREAMED, KIND, PENDING = range(6)
STREAM, WHOLE, OTHER = range(3)
"""Kinds of request: answered token by token; generated but answered at once; nothing is generated."""

UNKNOWN_KV_CAPACITY = 100_000.0


class Entry:
    """One request in flight, as the ledger knows it."""

    __slots__ = ("kind", "last", "pending", "prompt", "row", "sent", "slot", "streamed")

    def __init__(self, row: int, slot: int, prompt: int, sent: float, kind: int, pending: float) -> None:
        """A request that has just been forwarded."""
        self.row = row
        self.slot = slot
        self.prompt = prompt
        self.sent = sent
        self.pending = pending  # of the prompt, what is not expected to be cached
        self.kind = kind
        self.streamed = 0
        self.last = sent


class Ledger:
    """What this gateway forwarded and saw streamed back, for a changing set of backends."""

    def __init__(self, now: float) -> None:
        """Empty, at time `now` (s, monotonic)."""
        self.rows = np.zeros((4, schema.NUM_REPLICA_COLUMNS))
        """(capacity, replica columns): a row per backend, at the index that `add` gave."""
        self._cells: Any = (
            self.rows.data
        )  # the same memory; single numbers are read and written faster through it
        self.pace_sums = np.zeros((4, 2))
        """(capacity, 2): how long iterations took, and should have taken as declared, s (`view.pace`)."""
        self._sums: Any = self.pace_sums.data  # the same memory
        self.scraped_at = np.full(4, -math.inf)
        """(capacity,): when each backend was last scraped, s."""
        self.requests = np.zeros((64, 6))
        """(capacity, 6): requests in flight; the first `len(entries)` are used."""
        self._asked: Any = self.requests.data  # the same memory
        self.entries: list[Entry] = []
        self.finished = 0
        """Requests whose outputs are in `finished_tokens`."""
        self.finished_tokens = 0.0
        self.ttft_counts = np.zeros(BINS)
        """(BINS,): histogram of the TTFTs seen (`view.tail`); answers that are not streamed show none."""
        self._decided = now
        self._iteration = [-math.inf] * 4  # per row: when its current iteration was first seen
        self._alone = [-math.inf] * 4  # per row: when a first token last came while no other was streamed
        self._read = [0.0] * 4  # per row: what is due (s) for prompts whose iteration was not shown yet
        self._free: list[int] = [3, 2, 1, 0]

    def warm(self) -> None:
        """Compile before the first request comes; while there are no backends yet."""
        self.rows[:] = 1.0  # no capacity is zero
        self.write_view(np.zeros(1, np.int64), self._decided, 1.0, np.zeros((1, schema.NUM_REPLICA_COLUMNS)))
        self.rows[:] = 0.0
        tail_bin(1.0)
        pace.due_of_iteration(0.01, 1.0, 1.0)

    def add(
        self,
        *,
        speed: float,
        prefill_tokens_per_s: float,
        decode_iteration_s: float,
        kv_capacity_tokens: float,
        max_num_seqs: float,
    ) -> int:
        """Take up a backend with these static columns; returns its row."""
        if not self._free:
            size = len(self.rows)
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
            self._cells = self.rows.data
            self.pace_sums = np.concatenate([self.pace_sums, np.zeros_like(self.pace_sums)])
            self._sums = self.pace_sums.data
            self.scraped_at = np.concatenate([self.scraped_at, np.full(size, -math.inf)])
            self._iteration += [-math.inf] * size
            self._alone += [-math.inf] * size
            self._read += [0.0] * size
            self._free = list(range(2 * size - 1, size - 1, -1))
        row = self._free.pop()
        self.rows[row] = 0.0
        self.rows[row, schema.SPEED] = speed
        self.rows[row, schema.PREFILL_TOKENS_PER_S] = prefill_tokens_per_s
        self.rows[row, schema.DECODE_ITERATION_S] = decode_iteration_s
        self.rows[row, schema.KV_CAPACITY_TOKENS] = kv_capacity_tokens
        self.rows[row, schema.MAX_NUM_SEQS] = max_num_seqs
        self.rows[row, schema.AVAILABLE] = 1.0  # only those that are appear in a view
        self.scraped_at[row] = -math.inf
        self._iteration[row] = self._alone[row] = -math.inf
        self.forget_pace(row)
        return row

    def forget_pace(self, row: int) -> None:
        """A backend has lost what it was reading: its iterations so far do not count any more."""
        self.pace_sums[row] = 0.0
        self._read[row] = 0.0

    def remove(self, row: int) -> None:
        """Forget a backend that has nothing in flight; its row is used again."""
        self._free.append(row)

    def expected_output(self) -> float:
        """Running mean of the outputs of finished requests, with a prior, tokens."""
        return (PRIOR_OUTPUT_TOKENS * PRIOR_WEIGHT + self.finished_tokens) / (PRIOR_WEIGHT + self.finished)

    def routed(self, row: int, prompt: int, sent: float, kind: int, hit: float = 0.0) -> Entry:
        """A request of `prompt` tokens is forwarded to `row` at `sent`, where `hit` of them may be cached."""
        slot = len(self.entries)
        if slot == len(self.requests):
            self.requests = np.concatenate([self.requests, np.zeros_like(self.requests)])
            self._asked = self.requests.data
        entry = Entry(row, slot, prompt, sent, kind, prompt - hit)
        self.entries.append(entry)
        asked = self._asked
        asked[slot, ROW], asked[slot, SENT], asked[slot, PROMPT] = row, sent, prompt
        asked[slot, STREAMED], asked[slot, KIND], asked[slot, PENDING] = 0.0, kind, prompt - hit
        cells = self._cells
        cells[row, schema.IN_FLIGHT] += 1.0
        cells[row, schema.AWAITING_FIRST_TOKEN] += 1.0
        cells[row, schema.PENDING_PREFILL_TOKENS] += prompt - hit
        return entry

    def streamed(self, entry: Entry, tokens: int, now: float) -> None:
        """`tokens` more tokens of a streamed answer have come."""
        if tokens <= 0:
            return
        cells, row = self._cells, entry.row
        if entry.streamed == 0:
            self._heard_first_token(entry, now)
            cells[row, schema.AWAITING_FIRST_TOKEN] -= 1.0
            cells[row, schema.PENDING_PREFILL_TOKENS] -= entry.pending
            cells[row, schema.CONTEXT_TOKENS] += entry.prompt + tokens
            ttft = now - entry.sent
            average = cells[row, schema.TTFT_EWMA_S]
            cells[row, schema.TTFT_EWMA_S] = (
                ttft if average == 0.0 else average + TTFT_WEIGHT * (ttft - average)
            )
            self.ttft_counts[tail_bin(ttft)] += 1.0
        else:
            # Each stream shows the iterations of its replica. One that has shown the current iteration
            # already begins a new one: so an iteration counts once, however many requests are in the batch.
            if entry.last >= self._iteration[row]:
                self._iteration[row] = now
                self._heard_iterations(row, tokens, (now - entry.last) / tokens)
            cells[row, schema.CONTEXT_TOKENS] += tokens
        entry.last = now
        entry.streamed += tokens
        self._asked[entry.slot, STREAMED] = entry.streamed

    def _heard_iterations(self, row: int, count: int, duration: float) -> None:
        """`count` iterations that lasted `duration` s each, with a token for each of the streams."""
        cells, sums = self._cells, self._sums
        average = cells[row, schema.ITL_EWMA_S]
        cells[row, schema.ITL_EWMA_S] = (
            duration if average == 0.0 else average + ITL_WEIGHT * (duration - average)
        )
        decoding = cells[row, schema.IN_FLIGHT] - cells[row, schema.AWAITING_FIRST_TOKEN]
        due = pace.due_of_iteration(
            cells[row, schema.DECODE_ITERATION_S], decoding, cells[row, schema.CONTEXT_TOKENS]
        )
        kept = pace.KEPT**count
        ones = (1.0 - kept) / (1.0 - pace.KEPT)
        sums[row, 0] = kept * sums[row, 0] + ones * duration
        sums[row, 1] = kept * sums[row, 1] + ones * due + self._read[row]
        self._read[row] = 0.0

    def _heard_first_token(self, entry: Entry, now: float) -> None:
        """A prompt has been read, in iterations that other streams show too, or in others."""
        row = entry.row
        # What comes within half an iteration belongs to the same one.
        instant = 0.5 * self._cells[row, schema.DECODE_ITERATION_S]
        speaking = self._speaking(row)
        if now - self._iteration[row] < instant:
            self._sums[row, 1] += self._due_of_prompt(entry)
        elif speaking and now - self._alone[row] >= instant:
            self._read[row] += self._due_of_prompt(entry)
        if not speaking:
            self._alone[row] = now

    def _due_of_prompt(self, entry: Entry) -> float:
        return float(entry.pending / self._cells[entry.row, schema.PREFILL_TOKENS_PER_S])

    def _speaking(self, row: int) -> bool:
        """Whether a stream shows the backend's iterations."""
        return bool(self._cells[row, schema.IN_FLIGHT] > self._cells[row, schema.AWAITING_FIRST_TOKEN])

    def finished_with(self, entry: Entry, tokens: int) -> None:
        """The answer is complete and had `tokens` tokens (0: unknown, or nothing was generated)."""
        self.lost(entry)
        if entry.kind == WHOLE and self._speaking(entry.row):
            self._read[entry.row] += self._due_of_prompt(entry)
        if tokens > 0:
            self.finished += 1
            self.finished_tokens += tokens

    def lost(self, entry: Entry) -> None:
        """The request is not in flight any more: cancelled, failed, or to be sent elsewhere."""
        cells, row = self._cells, entry.row
        cells[row, schema.IN_FLIGHT] -= 1.0
        if entry.streamed == 0:
            cells[row, schema.AWAITING_FIRST_TOKEN] -= 1.0
            cells[row, schema.PENDING_PREFILL_TOKENS] -= entry.pending
        else:
            cells[row, schema.CONTEXT_TOKENS] -= entry.prompt + entry.streamed
        last = self.entries.pop()
        if last is not entry:  # the last one moves into the gap
            self.entries[entry.slot] = last
            self.requests[entry.slot] = self.requests[last.slot]
            last.slot = entry.slot

    def scraped(self, row: int, reading: "Reading", now: float) -> None:
        """What a backend's metrics say; columns that they lack stay as they are."""
        columns = self.rows[row]
        columns[schema.SCRAPED_RUNNING] = reading.running
        columns[schema.SCRAPED_WAITING] = reading.waiting
        columns[schema.SCRAPED_KV_USAGE] = reading.kv_usage
        columns[schema.SCRAPED_PREEMPTIONS] = reading.new_preemptions
        columns[schema.SCRAPED_PREFIX_HIT_RATE] = reading.prefix_hit_rate
        if reading.kv_capacity_tokens:
            columns[schema.KV_CAPACITY_TOKENS] = reading.kv_capacity_tokens
        self.scraped_at[row] = now

    def reported(self, row: int, waiting: float | None, kv_usage: float | None, now: float) -> None:
        """A load report in the head of an answer (ORCA): fresher than a scrape, with fewer columns.

        It brings the reading's age to zero only if there has been a whole one: else columns would be made up.
        """
        columns = self.rows[row]
        if waiting is not None:
            columns[schema.SCRAPED_WAITING] = waiting
        if kv_usage is not None:
            columns[schema.SCRAPED_KV_USAGE] = kv_usage
        if waiting is not None and kv_usage is not None and self.scraped_at[row] > -math.inf:
            self.scraped_at[row] = now

    def write_view(
        self,
        candidates: npt.NDArray[np.int64],
        now: float,
        stale_after: float,
        replicas: npt.NDArray[np.float64],
    ) -> float:
        """Write the view of now into `replicas` (R, columns), one row for each of the R rows `candidates`.

        Readings older than `stale_after` s are left out: the ledger's own counts take their place.
        Returns where the tail of TTFTs begins, in s (column `ttft_tail_s` of the request).
        """
        blend = 1.0 - math.exp(-(now - self._decided) / LOAD_HORIZON_S)
        self._decided = now
        return _write(
            self.rows,
            self.scraped_at,
            self.pace_sums,
            self.requests,
            len(self.entries),
            candidates,
            now,
            stale_after,
            self.expected_output(),
            self.ttft_counts,
            blend,
            replicas,
        )


@njit()
def _write(
    rows: npt.NDArray[np.float64],
    scraped_at: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    requests: npt.NDArray[np.float64],
    count: int,
    candidates: npt.NDArray[np.int64],
    now: float,
    stale_after: float,
    mean: float,
    ttft_counts: npt.NDArray[np.float64],
    blend: float,
    out: npt.NDArray[np.float64],
) -> float:
    for k in range(rows.shape[0]):
        rows[k, schema.IN_FLIGHT_EWMA] += blend * (rows[k, schema.IN_FLIGHT] - rows[k, schema.IN_FLIGHT_EWMA])
    position = np.full(rows.shape[0], -1)
    for r in range(candidates.shape[0]):
        k = candidates[r]
        position[k] = r
        for column in range(rows.shape[1]):
            out[r, column] = rows[k, column]
        out[r, schema.EXPECTED_REMAINING_TOKENS] = 0.0
        out[r, schema.OLDEST_WAIT_S] = 0.0
    for i in range(count):
        k = int(requests[i, ROW])
        r = position[k]
        if r < 0:
            continue
        to = out[r]
        streamed = requests[i, STREAMED]
        waited = now - requests[i, SENT]
        kind = int(requests[i, KIND])
        if kind == WHOLE:
            # Nothing is seen of it before its end. Once it has waited as long as others wait for a first
            # token, it is taken to decode as fast as they do.
            first = rows[k, schema.TTFT_EWMA_S]
            if first == 0.0:
                first = requests[i, PENDING] / rows[k, schema.PREFILL_TOKENS_PER_S]
            if waited > first:
                gap = rows[k, schema.ITL_EWMA_S]
                if gap == 0.0:
                    gap = rows[k, schema.DECODE_ITERATION_S]
                streamed = 1.0 + math.floor((waited - first) / gap)
                to[schema.AWAITING_FIRST_TOKEN] -= 1.0
                to[schema.PENDING_PREFILL_TOKENS] -= requests[i, PENDING]
                to[schema.CONTEXT_TOKENS] += requests[i, PROMPT] + min(streamed, mean)
        if streamed == 0.0:
            to[schema.OLDEST_WAIT_S] = max(to[schema.OLDEST_WAIT_S], waited)
        if kind != OTHER:
            to[schema.EXPECTED_REMAINING_TOKENS] += max(mean - streamed, LEAST_REMAINING * mean)
    for r in range(candidates.shape[0]):
        k = candidates[r]
        to = out[r]
        age = now - scraped_at[k]
        if age <= stale_after:
            to[schema.SCRAPE_AGE_S] = age
        else:
            to[schema.SCRAPED_RUNNING] = to[schema.IN_FLIGHT] - to[schema.AWAITING_FIRST_TOKEN]
            to[schema.SCRAPED_WAITING] = to[schema.AWAITING_FIRST_TOKEN]
            known = to[schema.CONTEXT_TOKENS] + to[schema.PENDING_PREFILL_TOKENS]
            to[schema.SCRAPED_KV_USAGE] = min(1.0, known / to[schema.KV_CAPACITY_TOKENS])
            to[schema.SCRAPED_PREEMPTIONS] = 0.0
            to[schema.SCRAPED_PREFIX_HIT_RATE] = 0.0
            to[schema.SCRAPE_AGE_S] = 0.0
    pace.correct_speeds(out, sums[candidates])
    return forget_and_find(ttft_counts)
