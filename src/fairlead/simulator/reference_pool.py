"""The block pool of the plain-Python twin: KV blocks with prefix caching, as vLLM V1 keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Block:
    """One KV block."""

    refs: int = 0
    """Running requests that hold it."""
    content: int | None = None
    """What it is cached under: an id of its tokens and all tokens before them."""


@dataclass
class BlockPool:
    """All blocks of one replica: each is held by somebody, or in the free queue, cached or not."""

    size: int
    free: list[Block] = field(init=False)
    """In the order in which they will be taken: least recently used first."""
    cached: dict[int, list[Block]] = field(init=False)
    """Blocks by content, oldest first (the same content may be computed more than once)."""

    def __post_init__(self) -> None:
        """All blocks are free and nothing is cached."""
        self.free = [Block() for _ in range(self.size)]
        self.cached = {}

    def longest_hit(self, contents: Sequence[int], most: int) -> list[Block]:
        """The cached blocks of the longest prefix of `contents`, at most `most` of them."""
        hit: list[Block] = []
        for content in contents[:most]:
            if content not in self.cached:
                break
            hit.append(self.cached[content][0])
        return hit

    def hold(self, blocks: Sequence[Block]) -> None:
        """One more request holds these cached blocks."""
        for block in blocks:
            if block.refs == 0:
                self.free.remove(block)
            block.refs += 1

    def take(self, count: int) -> list[Block]:
        """The first free blocks; what they had cached is forgotten."""
        assert count <= len(self.free)
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            if block.content is not None:
                self.cached[block.content].remove(block)
                if not self.cached[block.content]:
                    del self.cached[block.content]
                block.content = None
            block.refs = 1
        return taken

    def cache(self, block: Block, content: int) -> None:
        """A block is full: it can be found from now on."""
        assert block.content is None
        block.content = content
        self.cached.setdefault(content, []).append(block)

    def release(self, blocks: Sequence[Block]) -> None:
        """A request lets go of its blocks: the end of its chain will be taken before the beginning."""
        for block in reversed(blocks):
            block.refs -= 1
            if block.refs == 0:
                self.free.append(block)
