"""Steps the compiled engine through every single iteration and keeps books of its own on each replica.

`Books` looks at a replica twice per iteration, when a batch has been formed and when it has ended, and
checks what must hold there, by the rules of its scheduler. What a request has computed and emitted is counted
here from the batches alone, so the engine's own counters can be held against it.
"""

import math
from typing import Any

import numpy as np

from fairlead.simulator import engine, outage
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet
from fairlead.simulator.schedulers import SARATHI, VIDUR_V1, VLLM, VLLM_V0
from fairlead.simulator.state import NONE
from fairlead.workload.requests import Requests


def blocks_of(tokens: int, size: int) -> int:
    return -(-tokens // size)


class Books:
    """What one replica owes its requests."""

    def __init__(self, clusters: Clusters, replica: int) -> None:
        self.state, self.k = clusters.state, replica
        self.row = clusters.state.replicas[replica]
        self.requests = clusters.state.requests[0]
        self.computed: dict[int, int] = {}
        """Tokens in the KV cache, of the requests in a slot."""
        self.emitted: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        """Tokens of each request in the last batch."""
        self.in_batch = False
        """Whether that is still under way."""
        self.turn: dict[int, int] = {}
        """When each request was sent here: the number of the decision."""
        self.order: list[int] = []
        """Requests in the order of their first admission."""
        self.seen: dict[int, int] = {}
        """Preemptions of each request in a slot when the last batch was formed."""
        self.preemptions = 0
        self.began = 0.0
        """When the iteration under way began."""
        self.processed = self.lost = self.found = self.iterations = 0

    def known(self, i: int) -> int:
        """Tokens of request `i` that can be computed: its prompt and what it has emitted."""
        return int(self.requests[i].prompt) + self.emitted.get(i, 0)

    def slots(self) -> list[Any]:
        return list(self.state.slots[self.k][: self.row.running])

    def waiting(self) -> list[int]:
        """The queue, head first; its links must end where its count says."""
        found, i = [], int(self.row.waiting_head)
        for _ in range(self.row.waiting):
            found.append(i)
            i = int(self.requests[i].next_waiting)
        assert not found or found[-1] == self.row.waiting_tail
        return found

    def formed(self) -> None:
        """A batch has just been formed."""
        self.in_batch = True
        row = self.row
        slots = self.slots()
        inside = [int(slot.request) for slot in slots]
        # Sarathi may preempt a request and admit it again for the same batch: only its counter tells.
        lost = [i for i in self.computed if self.requests[i].preemptions > self.seen[i]]
        for i in lost:
            self.lost += self.computed.pop(i)
            self.preemptions += 1
        self.seen = {i: int(self.requests[i].preemptions) for i in inside}
        assert set(self.computed) <= set(inside), "only a preemption takes a request off the batch"
        admitted = [i for i in inside if i not in self.computed]
        decoding = row.running - row.prefilling
        self.wanted = {}
        for j, (i, slot) in enumerate(zip(inside, slots, strict=True)):
            if i not in self.computed:
                self.computed[i] = self._hit(i)
            computed = self.computed[i]
            if j < decoding:
                assert slot.left == 0
                # A decoding request has computed all it knows but the token it emitted last.
                assert computed == self.requests[i].prompt + row.tick - slot.zero_tick - 1
                assert computed == self.known(i) - 1
                self.wanted[i] = 0 if row.stalled else 1
            else:
                assert computed == self.known(i) - slot.left
                assert 0 <= slot.chunk <= slot.left
                self.wanted[i] = int(slot.chunk)
        self._check_limits(decoding)
        self._check_blocks(slots, decoding)
        self._check_queue(inside, admitted, preempted=bool(lost))
        assert row.preemptions == self.preemptions
        tokens = sum(self.wanted.values())
        assert tokens > 0, "an iteration without work"
        self.processed += tokens
        self.iterations += 1
        assert row.duration > 0

    def _hit(self, i: int) -> int:
        """Tokens that request `i` found cached when it was admitted: full blocks, never its last token."""
        if not self.row.caching:
            return 0
        hit = int(self.requests[i].hit)
        assert hit % self.row.block_size == 0 and 0 <= hit < self.known(i)
        self.found += hit
        return hit

    def _check_limits(self, decoding: int) -> None:
        row = self.row
        assert row.running <= row.max_seqs
        tokens = sum(self.wanted.values())
        if row.scheduler == SARATHI:
            # Vidur's scheduler lets every decode run, whatever the budget.
            assert tokens <= max(row.token_budget, decoding)
        elif row.scheduler == VLLM_V0:
            prompts = [n for n in self.wanted.values() if n] if row.stalled else []
            if row.padded:
                assert len(prompts) * max(prompts, default=0) <= row.token_budget
            assert sum(prompts) <= row.token_budget
        else:
            assert tokens <= row.token_budget
        half_done = [i for i in self.wanted if self.computed[i] + self.wanted[i] < self.known(i)]
        if row.scheduler == VLLM_V0:
            assert all(self.wanted[i] == 0 for i in half_done), "no chunks"
        else:
            assert len(half_done) <= 1, "at most one prompt is half done"

    def _check_blocks(self, slots: list[Any], decoding: int) -> None:
        """Blocks held, by the rule of the scheduler, and free ones add up to all of them."""
        row = self.row
        if row.caching:
            self._check_pool(slots)
            return
        held = 0
        for j, slot in enumerate(slots):
            i = int(slot.request)
            reserved = row.scheduler in (SARATHI, VLLM_V0) and j >= decoding
            tokens = self.known(i) if reserved else self.computed[i] + self.wanted[i]
            if row.scheduler == VIDUR_V1:
                assert slot.blocks >= blocks_of(tokens, row.block_size)
                held += int(slot.blocks)
            else:
                held += blocks_of(tokens, row.block_size)
        assert row.free_blocks >= 0
        assert held + row.free_blocks == row.kv_blocks

    def _check_pool(self, slots: list[Any]) -> None:
        """Blocks are shared by those whose content is the same up to there; the pool counts every holder."""
        row = self.row
        holders: dict[int, int] = {}
        contents: dict[int, int] = {}
        for slot in slots:
            i = int(slot.request)
            computed = self.computed[i]
            for place in range(blocks_of(computed + self.wanted.get(i, 0), row.block_size)):
                block = int(self.state.block_tables[self.k, slot.row, place])
                holders[block] = holders.get(block, 0) + 1
                if (place + 1) * row.block_size <= computed:
                    content = int(self.state.contents[self.requests[i].content + place])
                    assert contents.setdefault(block, content) == content
        for block, count in holders.items():
            assert self.state.blocks[self.k, block].refs == count
        assert row.free_blocks >= 0
        assert len(holders) + row.free_blocks == row.kv_blocks

    def _check_queue(self, inside: list[int], admitted: list[int], preempted: bool) -> None:
        """Each request is in one place; first come, first served; nobody waits who could run."""
        waiting = self.waiting()
        self.order += [i for i in admitted if i not in self.order]
        assert self.order == sorted(self.order, key=self.turn.__getitem__), "first come, first served"
        new = [i for i in waiting if i not in self.order]
        again = waiting[: len(waiting) - len(new)]
        in_turn = sorted(new, key=self.turn.__getitem__)
        assert new == in_turn == waiting[len(again) :], "the preempted stand before all others"
        assert not self.order or not new or self.turn[new[0]] > self.turn[self.order[-1]]
        assert len({*inside, *waiting}) == len(inside) + len(waiting)
        assert sorted([*inside, *waiting]) == self.in_flight()
        for i in admitted:
            assert self.requests[i].arrival <= self.requests[i].scheduled <= self.began
        if waiting and not preempted:
            assert self._is_blocked(waiting[0])

    def in_flight(self) -> list[int]:
        """Requests that were sent here and have not finished, in order."""
        here = (self.requests["replica"] == self.k) & np.isnan(self.requests["finish"])
        return [int(i) for i in np.flatnonzero(here)]

    def _is_blocked(self, head: int) -> bool:
        """Whether the head of the queue lacks budget, a slot or blocks."""
        row = self.row
        known, tokens = self.known(head), sum(self.wanted.values())
        if row.running == row.max_seqs:
            return True
        if row.scheduler == VLLM_V0:
            prompts = [n for n in self.wanted.values() if n] if row.stalled else []
            after = (len(prompts) + 1) * max([*prompts, known]) if row.padded else sum(prompts) + known
            if after > row.token_budget:
                return True
        elif tokens >= row.token_budget:
            return True
        if row.scheduler in (SARATHI, VLLM_V0):
            return bool(row.free_blocks - blocks_of(known, row.block_size) < row.watermark)
        if row.caching:
            return True  # What it would hit is the pool's business: see test_prefix_cache.py.
        return bool(blocks_of(min(known, row.token_budget - tokens), row.block_size) > row.free_blocks)

    def ended(self) -> None:
        """The batch has ended; its tokens are there."""
        self.in_batch = False
        now = self.row.clock
        inside = {int(slot.request) for slot in self.slots()}
        for i, tokens in self.wanted.items():
            if tokens == 0:
                continue
            request = self.requests[i]
            self.computed[i] += tokens
            if self.computed[i] < self.known(i):
                continue
            self.emitted[i] = self.emitted.get(i, 0) + 1
            if self.emitted[i] == 1:
                assert request.first_token == now
            if self.emitted[i] == request.output:
                assert request.finish == now
                assert i not in inside
                del self.computed[i]
        assert inside == set(self.computed)
        self._check_counters()

    def _check_counters(self) -> None:
        """At a boundary, the ledgers and the KV cache tell what the books tell."""
        row, size = self.row, self.row.block_size
        flying = self.in_flight()
        silent = [i for i in flying if not self.emitted.get(i)]
        own = self.state.ledgers[self.k]
        assert sum(own["in_flight"]) == len(flying)
        assert sum(own["awaiting"]) == len(silent)
        assert sum(own["pending_tokens"]) == sum(
            int(self.requests[i].estimate) - int(self.requests[i].expected_hit) for i in silent
        )
        streaming = [int(self.requests[i].estimate) + self.emitted[i] for i in flying if i not in silent]
        assert sum(own["context_tokens"]) == sum(streaming), "what the routers take for the context"
        decoding = self.slots()[: row.running - row.prefilling]
        in_kv = [self.computed[int(slot.request)] for slot in decoding]
        assert row.kv_tokens == sum(in_kv)
        assert sum(own["decoding"]) == len(decoding)
        phases = [0] * size
        for tokens in in_kv:
            phases[(tokens - row.tick) % size] += 1
        assert phases == list(self.state.phases[self.k][:size])
        if row.scheduler == VLLM and not row.caching:
            held = sum(blocks_of(tokens, size) for tokens in self.computed.values())
            assert held + row.free_blocks == row.kv_blocks

    def died(self) -> None:
        """The replica has just died: nothing of it is left, and its requests begin anew elsewhere."""
        row = self.row
        assert row.running == row.waiting == row.kv_tokens == 0 and not row.busy
        assert row.free_blocks == row.kv_blocks
        under_way = sum(self.wanted.values()) if self.in_batch else 0
        self.lost += sum(self.computed.values()) + under_way
        self.computed, self.wanted, self.in_batch = {}, {}, False
        gone = [i for i in self.turn if self.requests[i].replica != self.k]
        for i in gone:
            assert np.isnan(self.requests[i].first_token) and self.requests[i].retries > 0
            self.emitted.pop(i, None)
            del self.turn[i]
        self.order = [i for i in self.order if i not in gone]
        self._check_counters()

    def step_to(self, until: float) -> None:
        """All iterations that end by `until`, one at a time, and the batch that is under way then."""
        while True:
            row = self.row
            if row.busy:
                if row.clock > until:
                    return
                engine.advance(self.state, self.k, 0, float(row.clock))
                assert not row.busy
                self.ended()
            if row.clock >= until or row.running + row.waiting == 0:
                return
            # Just beyond the boundary: the next batch is formed, and nothing can be leapt over.
            self.began = float(row.clock)
            engine.advance(self.state, self.k, 0, math.nextafter(self.began, math.inf))
            assert row.busy, "a replica with requests is never idle"
            assert row.clock == self.began + row.duration
            self.formed()

    def settled(self) -> None:
        """All is done: every token emitted once, every block free, nothing left over."""
        here = [int(i) for i in np.flatnonzero(self.requests["replica"] == self.k)]
        outputs = {i: int(self.requests[i].output) for i in here}
        assert {i: self.emitted.get(i) for i in here} == outputs
        least = sum(int(self.requests[i].prompt) + outputs[i] - 1 for i in here)
        assert self.processed + self.found == least + self.lost, (
            "work done + work found in the cache = work needed + work lost to preemptions and failures"
        )
        row = self.row
        assert row.free_blocks == row.kv_blocks
        assert row.running == row.waiting == row.kv_tokens == 0
        assert (self.state.phases[self.k] == 0).all()


def keep_books(fleet: Fleet, requests: Requests, choose: np.random.Generator) -> tuple[Clusters, list[Books]]:
    """One cluster served to the end, by available replicas at random, every iteration of each checked."""
    clusters = Clusters([fleet], [requests])
    state, cluster = clusters.state, clusters.state.clusters[0]
    books = [Books(clusters, k) for k in range(clusters.R)]
    turn = 0
    while True:
        event, due = state.events[0, cluster.next_event], _next_decision(clusters)
        at = min(float(event.time), due)
        for each in books:
            each.step_to(at)
        if event.time < math.inf and event.time <= due:
            was_there = state.replicas["available"].copy()
            outage.change(state, 0, clusters.R)
            for each in books:
                if was_there[each.k] and not each.row.available:
                    each.died()
            continue
        clusters.observe()
        if clusters.done:
            break
        i, there = int(cluster.at_hand), np.flatnonzero(state.replicas["available"])
        to = choose.choice(there, 1)
        clusters.route(to)
        books[int(to[0])].turn[i] = turn
        turn += 1
    for each in books:
        each.settled()
    clusters.drain()
    return clusters, books


def _next_decision(clusters: Clusters) -> float:
    """When the next request is sent to a replica, if nothing fails before; infinite if there is none."""
    cluster, requests = clusters.state.clusters[0], clusters.state.requests[0]
    i = cluster.retry_head if cluster.retry_head != NONE else cluster.next_request
    if i >= clusters.N or cluster.available == 0:
        return math.inf
    return max(float(cluster.now), float(requests[i].arrival))
