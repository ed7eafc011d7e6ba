"""The twin's other schedulers, as lists: those of Vidur (`sarathi`, `vllm`, and 25e0082's `vllm_v1`).

`docs/simulator.md` describes them in section 1. `running` is the list in Vidur's order.
"""

from fairlead.simulator.reference_cache import CachingReplica
from fairlead.simulator.reference_replica import InFlight, Iteration, Replica, ReplicaSpec

AHEAD = 4
"""Blocks that vidur_v1 takes in advance."""


def make_replica(index: int, spec: ReplicaSpec, log: list[Iteration] | None, routers: int) -> Replica:
    """A replica with the scheduler that its specification names."""
    vllm = CachingReplica if spec.prefix_caching else Replica
    kinds = {"vllm": vllm, "sarathi": Sarathi, "vllm_v0": VllmV0, "vidur_v1": VidurV1}
    return kinds[spec.scheduler.name](index, spec, log, routers)


def lose_prompt(request: InFlight) -> None:
    """Vidur's bug: what is not computed yet of a prompt counts as output from now on."""
    lost = request.known - request.computed
    request.prompt_tokens -= lost
    request.estimate -= lost
    request.output_tokens += lost


class Reserving(Replica):
    """Blocks are held by request, not derived from its tokens."""

    def __init__(
        self, index: int, spec: ReplicaSpec, log: list[Iteration] | None = None, routers: int = 1
    ) -> None:
        """An idle, empty replica."""
        super().__init__(index, spec, log, routers)
        self.held: dict[int, int] = {}
        self.watermark = spec.scheduler.watermark_blocks(spec.kv_blocks)

    def blocks_held(self, request: InFlight) -> int:
        """KV blocks that a request has."""
        return self.held.get(request.index, 0)

    def take(self, request: InFlight, blocks: int) -> None:
        """Hands out blocks."""
        self.held[request.index] = self.blocks_held(request) + blocks
        self.free -= blocks

    def leave(self, request: InFlight) -> None:
        """Frees what a request holds."""
        self.free += self.held.pop(request.index)

    def die(self) -> list[InFlight]:
        """No request holds anything any more."""
        self.held = {}
        return super().die()

    def give_up(self, request: InFlight) -> None:
        """Preempts a request: it will be recomputed, ahead of all that wait."""
        self.leave(request)
        if not request.decoding and self.spec.scheduler.restart_loses_prompt:
            lose_prompt(request)
        request.computed = 0
        request.chunk = 0
        request.decoding = False
        request.preemptions += 1
        self.waiting.appendleft(request)
        self.preempted.append(request.index)
        self.preemptions += 1

    def admit_head(self, tokens: int, blocks: int) -> None:
        """The head of the queue joins, with its first tokens."""
        request = self.waiting.popleft()
        self.take(request, blocks)
        request.chunk = tokens
        self.running.append(request)

    def head_fits(self) -> bool:
        """Whether a slot is free, and blocks for the whole prompt of the head beyond the watermark."""
        if not self.waiting or len(self.running) >= self.spec.max_seqs:
            return False
        return self.free - self.blocks(self.waiting[0].known) >= self.watermark

    def decode(self) -> tuple[list[InFlight], list[InFlight]]:
        """One token for each decoding request, in order, as long as blocks are free: (served, prompts).

        Half-done prompts are set aside when their turn comes. While no block is free, the last in the list
        is preempted, prompts that stand there included, in the end the one in need itself.
        """
        served, prompts = [], []
        while self.running:
            request = self.running.pop(0)
            if not request.decoding:
                prompts.append(request)
                continue
            while self.free < 1 and self.running:
                self.give_up(self.running.pop())
            if self.free < 1:
                self.give_up(request)
                continue
            if request.computed == self.blocks_held(request) * self.spec.block_size:
                self.take(request, 1)
            request.chunk = 1
            served.append(request)
        return served, prompts


class Sarathi(Reserving):
    """Decodes and chunks of prompts together."""

    def form_batch(self) -> None:
        """Decodes, then half-done prompts, then waiting requests."""
        served, prompts = self.decode()
        left = self.spec.token_budget - len(served)
        skipped: list[InFlight] = []
        chunked: list[InFlight] = []
        for request in prompts:
            request.chunk = max(0, min(request.known - request.computed, left))
            left -= request.chunk
            (chunked if request.chunk else skipped).append(request)
        self.running = [*skipped, *served, *chunked]
        while left > 0 and self.head_fits():
            known = self.waiting[0].known
            tokens = min(known, left)
            self.admit_head(tokens, self.blocks(known))
            left -= tokens


class VllmV0(Reserving):
    """Prompts first, each in one piece; while there are any, nobody decodes."""

    def form_batch(self) -> None:
        """Waiting requests alone, or else all that run."""
        admitted: list[int] = []
        while self.head_fits():
            admitted.append(self.waiting[0].known)
            padded = self.spec.scheduler.padded
            size = len(admitted) * max(admitted) if padded else sum(admitted)
            if size > self.spec.token_budget:
                return
            self.admit_head(self.waiting[0].known, self.blocks(self.waiting[0].known))
        if not admitted:
            self.running, _ = self.decode()


class VidurV1(CachingReplica):
    """vLLM V1 as in Vidur 25e0082: the token just emitted counts as computed; four blocks are taken ahead."""

    def blocks_held(self, request: InFlight) -> int:
        """KV blocks that a running request has, those taken ahead included."""
        return len(self.held[request.index])

    def blocks_wanted(self, request: InFlight, tokens: int) -> int:
        """Blocks that it lacks for its next tokens, the one just emitted included."""
        end = request.computed + tokens + request.decoding
        return max(0, self.blocks(end) - self.blocks_held(request))

    def grant(self, request: InFlight, tokens: int, blocks: int) -> None:
        """Takes blocks; those that are full, the token just emitted included, can be found from now on."""
        held = self.held[request.index]
        if blocks > 0:
            held += self.pool.take(min(blocks + AHEAD, len(self.pool.free)))
        full = (request.computed + tokens + request.decoding) // self.spec.block_size
        # Without prefix caching there are no contents.
        for block, content in zip(held[:full], request.contents, strict=False):
            if block.content is None:
                self.pool.cache(block, content)
        self.free = len(self.pool.free)
        request.chunk = tokens

    def preempt(self) -> InFlight:
        """Evicts the request admitted last; in mid-prompt, the rest of its prompt is forgotten."""
        request = self.running[-1]
        if not request.decoding and self.spec.scheduler.restart_loses_prompt:
            lose_prompt(request)
        return super().preempt()
