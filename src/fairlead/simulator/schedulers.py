"""The schedulers that a replica may have, and their options."""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.errors import FairleadError

VLLM, SARATHI, VLLM_V0, VIDUR_V1 = range(4)

SCHEDULERS: Mapping[str, int] = {
    "vllm": VLLM,
    "sarathi": SARATHI,
    "vllm_v0": VLLM_V0,
    "vidur_v1": VIDUR_V1,
}
"""Name -> code. The last one is for comparisons with Vidur 25e0082 only."""

VIDUR_WATERMARK = 0.01
"""Share of the blocks that Vidur keeps free when it admits a request."""


@dataclass(frozen=True)
class SchedulerOptions:
    """How a replica forms its batches.

    Raises:
        FairleadError: for an unknown name or a watermark that the scheduler does not have.
    """

    name: str = "vllm"
    watermark: float | None = None
    """Share of the blocks that an admission must leave free; default: that of Vidur's scheduler, 0.01."""
    padded: bool = True
    """vllm_v0: a batch counts as its longest prompt times its requests (Vidur 7d47513), not as the sum."""
    restart_loses_prompt: bool = False
    """For comparison with Vidur: a request preempted in mid-prompt forgets the rest of its prompt."""

    def __post_init__(self) -> None:
        """Validates."""
        if self.name not in SCHEDULERS:
            raise FairleadError(f"unknown scheduler {self.name!r}: known are {', '.join(SCHEDULERS)}")
        has_watermark = self.name in ("sarathi", "vllm_v0")
        if self.watermark is not None and not has_watermark:
            raise FairleadError(f"the scheduler {self.name} has no watermark: only sarathi and vllm_v0 do")
        if self.watermark is not None and not 0 <= self.watermark < 1:
            raise FairleadError(
                f"watermark {self.watermark:g} is not a share of the blocks, from 0 to below 1"
            )

    @property
    def code(self) -> int:
        """The number by which compiled code knows the scheduler."""
        return SCHEDULERS[self.name]

    @property
    def counts_last_token(self) -> bool:
        """Whether the last token of a request needs room, too, and can fill a block of the prefix cache."""
        return self.name == "vidur_v1"

    def watermark_blocks(self, kv_blocks: int) -> int:
        """Blocks that an admission must leave free."""
        if self.name not in ("sarathi", "vllm_v0"):
            return 0
        return int((VIDUR_WATERMARK if self.watermark is None else self.watermark) * kv_blocks)

    def longest_request(self, kv_blocks: int, block_size: int, token_budget: int) -> int:
        """Most tokens of prompt and output (without the last one) with which a request can finish.

        With a watermark, a request that was preempted shortly before its end must still be admitted; without
        chunks, it must fit into one batch.
        """
        tokens = (kv_blocks - self.watermark_blocks(kv_blocks)) * block_size - self.counts_last_token
        return min(tokens, token_budget) if self.name == "vllm_v0" else tokens


VLLM_V1 = SchedulerOptions()
"""The default."""
