"""Prompt tokens counted before a request is placed: by a tokenizer of our own, or by a backend's `/tokenize`.

Without either, the length of a prompt is estimated from its size (`fairlead.serve.tokens.PromptEstimate`).
Counting happens beside the event loop, and a request waits for it only so long; whatever cannot be counted in
time is estimated, and counted as such in `/metrics`.
"""

import asyncio
import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import msgspec

from fairlead.errors import FairleadError
from fairlead.serve.backend import Backend
from fairlead.serve.facts import Facts
from fairlead.serve.fetch import fetch
from fairlead.serve.logs import EventLog
from fairlead.serve.settings import Tokens

ANY_MODEL = "*"
"""In the settings: the tokenizer of all models that have none of their own."""
OUTCOMES = ("counted", "remembered", "late", "busy", "failed", "unsupported")
"""What became of a prompt that was to be counted; all but the first two are estimated then."""

_MEMORY = 16_384  # texts whose length is remembered
_AT_ONCE = 64  # prompts being counted; more are estimated
_SAMPLES = 50.0  # after which an older overhead counts for 1/e
_EVENT_EVERY_S = 60.0
_TOKENIZE = {b"/v1/completions": b"prompt", b"/v1/chat/completions": b"messages"}


class Countable(Protocol):
    """A request whose prompt is to be counted."""

    facts: Facts | None

    def prompt_counted(self, tokens: int | None) -> None:
        """Its tokens; None: not in time, or not at all."""


class Remembered:
    """The lengths of the latest texts: at most so many, the oldest forgotten first."""

    def __init__(self, size: int) -> None:
        """Nothing is remembered."""
        self._size = size
        self._tokens: dict[int, int] = {}

    def get(self, key: int) -> int | None:
        """Tokens of the text of this key."""
        return self._tokens.get(key)

    def put(self, key: int, tokens: int) -> None:
        """Remember a length."""
        if len(self._tokens) >= self._size:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[key] = tokens


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw(b"")


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""


_messages = msgspec.json.Decoder(list[_Message])
_content = msgspec.json.Decoder(str | list[_Part] | None)
_texts = msgspec.json.Decoder(str | list[str])


class TokenizerFile:
    """Counts with a `tokenizer.json`, in a thread of its own; the texts of conversations are counted once.

    A template puts marks around each message, which a tokenizer file does not tell: how many is learned from
    `usage`, as a mean per message and one more.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            FairleadError: if it cannot be used, or the `tokenizers` library is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise FairleadError(
                "tokens.tokenizers needs the tokenizers library: pip install 'fairlead[tokenizers]'"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise FairleadError(f"{path} is not a tokenizer.json that can be used: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._known = Remembered(_MEMORY)
        self._marks: dict[bool, float] = {}  # of chats, of other prompts

    def count(self, facts: Facts) -> tuple[int, int, bool]:
        """(tokens of its texts, messages, whether that is all of it) of a prompt as JSON.

        Raises:
            ValueError: if there is no text in it.
        """
        prompt = facts.prompt
        if prompt[:1] == b"[":
            try:
                messages = _messages.decode(prompt)
            except msgspec.ValidationError:
                pass  # several prompts
            else:
                counted = [self._message(bytes(message.content)) for message in messages]
                return sum(n for n, _ in counted), len(messages), all(whole for _, whole in counted)
        key = hash(prompt)
        tokens = self._known.get(key)
        if tokens is None:
            texts = _texts.decode(prompt)
            tokens = self._texts([texts] if isinstance(texts, str) else texts)
            self._known.put(key, tokens)
        return tokens, 0, True

    def _message(self, content: bytes) -> tuple[int, bool]:
        if not content:
            return 0, True
        key = hash(content)
        known = self._known.get(key)
        if known is not None:
            return known, True
        parts = _content.decode(content)
        if isinstance(parts, list):
            whole = all(part.type in ("text", "input_text", "output_text") for part in parts)
            tokens = self._texts([part.text for part in parts if part.text])
        else:
            whole, tokens = True, self._texts([parts] if parts else [])
        if whole:
            self._known.put(key, tokens)
        return tokens, whole

    def _texts(self, texts: Sequence[str]) -> int:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return sum(len(each.ids) for each in encoded)

    def with_marks(self, tokens: int, messages: int) -> int:
        """Tokens of the whole prompt, with those that stand around its texts."""
        return max(1, round(tokens + self._marks.get(messages > 0, 0.0) * (messages + 1)))

    def learn(self, tokens: int, messages: int, told: int) -> None:
        """A prompt whose texts have `tokens` tokens had `told` in all."""
        marks, chat = (told - tokens) / (messages + 1), messages > 0
        known = self._marks.get(chat)
        self._marks[chat] = marks if known is None else known + (marks - known) / _SAMPLES


class PromptCounter:
    """Counts the prompts of requests before they are placed, within a time."""

    def __init__(self, settings: Tokens, backends: Iterable[Backend], events: EventLog) -> None:
        """As `settings.prompts` says; `backends` are those that there are to ask, at any time.

        Raises:
            FairleadError: if a tokenizer cannot be used.
        """
        self._settings = settings
        self._backends = backends
        self._events = events
        self._files = {model: TokenizerFile(path) for model, path in settings.tokenizers.items()}
        self._thread = ThreadPoolExecutor(1, "tokenizer") if self._files else None
        self._known = Remembered(_MEMORY)
        self._under_way: dict[asyncio.Future[Any], bool] = {}  # whether it is late, the oldest first
        self._said_at = float("-inf")
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        """How many prompts, by what became of them."""

    def close(self) -> None:
        """Give up what is under way."""
        for future in list(self._under_way):
            future.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, request: Countable, path: bytes) -> bool:
        """Count the prompt of `request`, and tell it; False if it is not counted (or known already)."""
        facts = request.facts
        assert facts is not None
        if facts.prompt_tokens >= 0 or not facts.prompt:
            return False
        if self._busy():
            self.outcomes["busy"] += 1
            return False
        work = self._by_file(facts) if self._thread is not None else self._by_backend(facts, path)
        if work is None:
            self.outcomes["unsupported"] += 1
            return False
        if isinstance(work, int):
            self.outcomes["remembered"] += 1
            request.prompt_counted(work)
            return True
        self._under_way[work] = False
        loop = asyncio.get_running_loop()
        waiting = True

        def settle(outcome: str, tokens: int | None) -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                timer.cancel()
                self.outcomes[outcome] += 1
                request.prompt_counted(tokens)

        def done(future: "asyncio.Future[int]") -> None:
            self._under_way.pop(future, None)
            if future.cancelled():
                settle("failed", None)
            elif (error := future.exception()) is not None:
                self._say(error)
                settle("failed", None)
            else:
                settle("counted", future.result())

        def late() -> None:
            self._under_way[work] = True
            settle("late", None)

        timer = loop.call_later(self._settings.count_within, late)
        work.add_done_callback(done)
        return True

    def _busy(self) -> bool:
        """Whether another prompt would not be counted in time anyway: then nothing waits for it."""
        held_up = self._thread is not None and next(iter(self._under_way.values()), False)
        return held_up or len(self._under_way) >= _AT_ONCE

    def _say(self, error: BaseException) -> None:
        """One event a minute: each failure is in the metrics."""
        now = monotonic()
        if now - self._said_at >= _EVENT_EVERY_S:
            self._said_at = now
            self._events("prompt_not_counted", error=str(error) or type(error).__name__)

    # By a tokenizer of our own.

    def _file(self, model: str) -> TokenizerFile | None:
        return self._files.get(model) or self._files.get(ANY_MODEL)

    def _by_file(self, facts: Facts) -> "asyncio.Future[int] | int | None":
        file = self._file(facts.model)
        if file is None:
            return None

        def count() -> int:
            tokens, messages, _ = file.count(facts)
            return file.with_marks(tokens, messages) + self._rest(facts)

        return asyncio.get_running_loop().run_in_executor(self._thread, count)

    def _rest(self, facts: Facts) -> int:
        """Of tools, instructions and the like only the size is known."""
        return round((facts.prompt_bytes - len(facts.prompt)) / self._settings.bytes_per_token)

    def learn(self, facts: Facts, told: int) -> None:
        """A prompt turned out to have `told` tokens: how many stand around its texts?"""
        file = self._file(facts.model)
        if file is None or self._thread is None or facts.prompt_bytes != len(facts.prompt):
            return
        if len(self._under_way) < _AT_ONCE // 2:
            self._thread.submit(functools.partial(_learn, file, facts, told))

    # By a backend.

    def _by_backend(self, facts: Facts, path: bytes) -> "asyncio.Future[int] | int | None":
        key = _TOKENIZE.get(path)
        if key is None or facts.prompt_bytes != len(facts.prompt):
            return None
        known = self._known.get(hash((facts.model, facts.prompt)))
        if known is not None:
            return known
        able = [
            each
            for each in self._backends
            if each.up and (not each.models or not facts.model or facts.model in each.models)
        ]
        if not able:
            return None
        chosen = min(able, key=lambda each: each.in_flight)
        return asyncio.ensure_future(self._ask(chosen, key, facts))

    async def _ask(self, backend: Backend, key: bytes, facts: Facts) -> int:
        body = b'{"model":%b,"%b":%b}' % (msgspec.json.encode(facts.model), key, facts.prompt)
        timeout = max(1.0, 2 * self._settings.count_within)  # what comes too late is remembered
        answer = await fetch(backend, "/tokenize", timeout, json=body)
        if answer.status != 200:
            raise OSError(f"{backend.name}: /tokenize answers with {answer.status}")
        count = msgspec.json.decode(answer.body, type=_Count).count
        self._known.put(hash((facts.model, facts.prompt)), count)
        return count


class _Count(msgspec.Struct):
    count: int


def _learn(file: TokenizerFile, facts: Facts, told: int) -> None:
    tokens, messages, whole = file.count(facts)
    if whole:
        file.learn(tokens, messages, told)
