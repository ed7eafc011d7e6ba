"""What one engine counts: the counters and histograms of vLLM's metrics."""

import math
from typing import Protocol

from fairlead.serve.backend import Histogram

LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Counted(Protocol):
    """What is read of a request."""

    arrival_s: float
    scheduled_s: float
    first_token_s: float
    last_token_s: float
    finish_s: float
    prompt_tokens: int
    generated: int
    limited: bool


class Tally:
    """Counts since the engine's start; times are those of the engine, s."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.prompt_tokens = 0
        """Of requests whose first token has been emitted."""
        self.generated_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0}
        """Requests that have left, by reason."""
        self.ttft_s = Histogram(TTFT_S)
        self.itl_s = Histogram(ITL_S)
        self.tpot_s = Histogram(ITL_S)
        self.e2e_s = Histogram(LATENCY_S)
        self.queue_s = Histogram(LATENCY_S)
        self.prefill_s = Histogram(LATENCY_S)
        self.decode_s = Histogram(LATENCY_S)
        self.request_prompt_tokens = Histogram(REQUEST_TOKENS)
        self.request_generated_tokens = Histogram(REQUEST_TOKENS)

    def token(self, request: Counted, now_s: float) -> None:
        """`request` has emitted a token at `now_s`; `last_token_s` is still that of the one before."""
        self.generated_tokens += 1
        if request.generated == 1:
            self.prompt_tokens += request.prompt_tokens
            self.ttft_s.observe(now_s - request.arrival_s)
        else:
            self.itl_s.observe(now_s - request.last_token_s)
        if not math.isnan(request.finish_s):
            self._finish(request, now_s)

    def _finish(self, request: Counted, now_s: float) -> None:
        self.finished["length" if request.limited else "stop"] += 1
        decode_s = now_s - request.first_token_s
        self.e2e_s.observe(now_s - request.arrival_s)
        self.tpot_s.observe(decode_s / (request.generated - 1) if request.generated > 1 else 0.0)
        self.queue_s.observe(request.scheduled_s - request.arrival_s)
        self.prefill_s.observe(request.first_token_s - request.scheduled_s)
        self.decode_s.observe(decode_s)
        self.request_prompt_tokens.observe(request.prompt_tokens)
        self.request_generated_tokens.observe(request.generated)
