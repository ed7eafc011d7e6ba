"""A replica of the plain-Python twin with prefix caching, after vLLM V1's KV cache manager.

(`vllm/v1/core/kv_cache_manager.py`; `docs/simulator.md` has the rules in prose.)
"""

from fairlead.simulator.reference_pool import Block, BlockPool
from fairlead.simulator.reference_replica import InFlight, Iteration, Replica, ReplicaSpec


class CachingReplica(Replica):
    """A replica that keeps full blocks cached and starts a prompt behind what it finds of it."""

    def __init__(
        self, index: int, spec: ReplicaSpec, log: list[Iteration] | None = None, routers: int = 1
    ) -> None:
        """An idle replica with nothing cached."""
        super().__init__(index, spec, log, routers)
        self.pool = BlockPool(spec.kv_blocks)
        self.held: dict[int, list[Block]] = {}
        """The blocks of each running request, by its index."""

    def admit(self, budget: int) -> None:
        """Admits waiting requests, first come first served, each behind its longest cached prefix."""
        while self.waiting and budget > 0 and len(self.running) < self.spec.max_seqs:
            request = self.waiting[0]
            # The last known token has to be computed: its output is what is wanted.
            hit = self.pool.longest_hit(request.contents, (request.known - 1) // self.spec.block_size)
            done = len(hit) * self.spec.block_size
            want = min(request.known - done, budget)
            need = self.blocks(done + want) - len(hit)
            if need + sum(block.refs == 0 for block in hit) > self.free:
                return
            self.running.append(self.waiting.popleft())
            self.pool.hold(hit)
            self.held[request.index] = hit
            request.computed = done
            if request.preemptions == 0:
                request.cached = done
                self.queried_tokens += request.prompt_tokens
                self.hit_tokens += done
            self.grant(request, want, need)
            budget -= want

    def grant(self, request: InFlight, tokens: int, blocks: int) -> None:
        """Takes blocks; those that the iteration fills can be found from now on."""
        held = self.held[request.index]
        held += self.pool.take(blocks)
        size = self.spec.block_size
        # Whoever does not say what a request contains gets no hits.
        full = min((request.computed + tokens) // size, len(request.contents))
        for position in range(request.computed // size, full):
            self.pool.cache(held[position], request.contents[position])
        self.free = len(self.pool.free)
        request.chunk = tokens

    def die(self) -> list[InFlight]:
        """Nothing stays cached either."""
        self.pool = BlockPool(self.spec.kv_blocks)
        self.held = {}
        return super().die()

    def leave(self, request: InFlight) -> None:
        """Lets go of the request's blocks; they stay cached until they are taken."""
        self.pool.release(self.held.pop(request.index))
        self.free = len(self.pool.free)
