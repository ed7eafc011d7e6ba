"""Counting tokens in answers that pass through, and learning how long prompts are.

An SSE event is nearly a token: under pressure vLLM merges several into one. So events are counted while the
answer streams, and `usage` settles the total at its end.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

_USAGE = re.compile(rb'"usage"\s*:\s*\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_ROLE_ONLY = re.compile(rb'"role"\s*:\s*"assistant"')

MAX_EVENT_BYTES = 1 << 20
"""The unfinished part of a longer event is not kept: it still counts when it ends."""
TAIL_BYTES = 4096
"""How much of the end of a plain JSON answer is searched for `usage`."""


class Usage(NamedTuple):
    """What a backend says that a request took; -1 where it does not."""

    prompt_tokens: int
    output_tokens: int


def find_usage(data: bytes) -> Usage | None:
    """The last `usage` object in `data`, if there is one.

    Quotes inside a JSON string are escaped, so that a text about usage is not mistaken for it.
    """
    # From the end: what a short piece of code looks for is found faster than what an expression does.
    at = data.rfind(b'"usage"')
    while at >= 0:
        found = _USAGE.match(data, at)
        if found is not None:
            break
        at = data.rfind(b'"usage"', 0, at)
    else:
        return None
    prompt, output = _PROMPT.search(found[0]), _OUTPUT.search(found[0])
    return Usage(int(prompt[1]) if prompt else -1, int(output[1]) if output else -1)


def is_total(event: bytes) -> bool:
    """Whether an event only brings the `usage` of the whole answer."""
    return _NO_CHOICES.search(event) is not None and find_usage(event) is not None


class EventMeter:
    """Counts the tokens in a stream of server-sent events, piece by piece as it passes."""

    __slots__ = ("_ahead", "_first", "_tail", "tokens", "usage")

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.tokens = 0
        """Tokens so far: events with content, or as `usage` says."""
        self.usage: Usage | None = None
        """The last `usage` seen."""
        self._tail = b""
        self._first = True
        self._ahead = (
            False  # a chat's first event brings the role: it comes with the first token, not before it
        )

    def feed(self, data: bytes) -> int:
        """Take the next piece; returns how many tokens it brought.

        Those that only the total at the end tells of are in `tokens`, but brought by no piece.
        """
        if self._tail:
            data = self._tail + data
        elif not self._first and not self._ahead and data.endswith(b"\n\n") and b'"usage"' not in data:
            # What nearly all pieces are: whole events, each with content and nothing else.
            events = data.count(b'"choices":[{') or data.count(b'"choices": [{')
            if events == data.count(b"\n\n"):
                self.tokens += events
                return events
        if b"\r" in data:  # only framing: JSON escapes it
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            self._tail = data if len(data) <= MAX_EVENT_BYTES else b""
            return 0
        self._tail = data[end:] if end < len(data) else b""
        before = self.tokens
        if b"\nevent:" in data or data.startswith(
            b"event:"
        ):  # the Responses and Messages APIs name their events
            self.tokens += data.count(b"delta\n", 0, end)
        else:
            events = data.count(b"\n\n", 0, end)
            if self._first:
                self._first = False
                if _ROLE_ONLY.search(data, 0, end):
                    events -= 1
                    if events == 0:  # the role alone: its token follows at once
                        self._ahead = True
                        self.tokens = 1
                        return 1
            elif self._ahead and events:
                self._ahead = False
                events -= 1
            events -= data.count(b"data: [DONE]", 0, end) + data.count(b"\n:", 0, end) + data.startswith(b":")
            if b'"choices"' in data and _NO_CHOICES.search(data, 0, end):
                events -= 1
            self.tokens += max(events, 0)
        if b'"usage"' in data:
            usage = find_usage(data[:end])
            if usage is not None:
                self.usage = usage
                if usage.output_tokens >= 0:
                    counted, self.tokens = self.tokens, max(usage.output_tokens, before)
                    if _NO_CHOICES.search(data, 0, end):
                        # The total, after the last token: what events had hidden came long before, not now.
                        return min(counted, self.tokens) - before
        return self.tokens - before


class PromptEstimate:
    """Tokens of a prompt from its size, learned per model from `usage`."""

    MEMORY = 200.0
    """Prompts after which an older one counts for 1/e."""
    MAX_MODELS = 256

    def __init__(self, bytes_per_token: float) -> None:
        """`bytes_per_token` is the first guess."""
        self._first = bytes_per_token
        self._seen: dict[str, list[float]] = {}

    def tokens(self, model: str, size: int) -> int:
        """Expected tokens of a prompt of `size` bytes."""
        seen = self._seen.get(model)
        ratio = self._first if seen is None else seen[0] / seen[1]
        return max(1, round(size / ratio))

    def bytes_per_token(self, models: Collection[str]) -> float:
        """Over all prompts of `models`; of none: of all models."""
        seen = [self._seen[model] for model in models or self._seen if model in self._seen]
        return sum(each[0] for each in seen) / sum(each[1] for each in seen) if seen else self._first

    def learn(self, model: str, size: int, tokens: int) -> None:
        """A prompt of `size` bytes turned out to have `tokens` tokens."""
        if tokens <= 0 or size <= 0:
            return
        seen = self._seen.get(model)
        if seen is None:
            if len(self._seen) >= self.MAX_MODELS:  # clients invent names: keep memory bounded
                return
            self._seen[model] = [float(size), float(tokens)]
            return
        keep = 1.0 - 1.0 / self.MEMORY
        seen[0] = keep * seen[0] + size
        seen[1] = keep * seen[1] + tokens
