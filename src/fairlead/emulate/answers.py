"""The shapes of vLLM's answers: server-sent events and JSON of completions and chats.

Field by field as vLLM 0.32 writes them; what every chunk of a request has in common is built once.
"""

import time
from typing import Any

import msgspec

from fairlead.emulate.asks import Ask
from fairlead.emulate.prompts import answer_text

FINGERPRINT = "fairlead-emulator"
DONE = b"data: [DONE]\n\n"

_NO_TOKEN_IDS = {"stop_reason": None, "token_ids": None}
_NO_DETAILS: dict[str, Any] = {"prompt_tokens_details": None, "completion_tokens_details": None}


def usage(ask: Ask, generated: int) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": ask.prompt_tokens,
        "total_tokens": ask.prompt_tokens + generated,
        "completion_tokens": generated,
    }


def whole(ask: Ask, name: str, generated: int, reason: str) -> bytes:
    """The body of an answer that is not streamed."""
    text = answer_text(0, generated)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason, **_NO_TOKEN_IDS}
    if ask.chat:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        choice = {"index": 0, "message": message, **choice}
    else:
        choice = {"index": 0, "text": text, **choice, "prompt_logprobs": None, "prompt_token_ids": None}
    return msgspec.json.encode(
        {
            "id": name,
            "object": "chat.completion" if ask.chat else "text_completion",
            "created": int(time.time()),
            "model": ask.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(ask, generated), **_NO_DETAILS},
            "kv_transfer_params": None,
        }
    )


class Events:
    """The server-sent events of one streamed answer."""

    def __init__(self, ask: Ask, name: str) -> None:
        """For the answer called `name`."""
        self._ask = ask
        self._generated = 0
        kind = "chat.completion.chunk" if ask.chat else "text_completion"
        head = {"id": name, "object": kind, "created": int(time.time()), "model": ask.model}
        self._head = b"data: " + msgspec.json.encode(head)[:-1]
        """The object so far, without its closing brace."""
        if ask.chat:
            self._before = self._head + b',"choices":[{"index":0,"delta":{"content":"'
            self._after = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]'
        else:
            self._before = self._head + b',"choices":[{"index":0,"text":"'
            self._after = (
                b'","logprobs":null,"finish_reason":null,"stop_reason":null,'
                b'"prompt_token_ids":null,"token_ids":null}]'
            )

    def tokens(self, count: int, reason: str | None) -> bytes:
        """The event for `count` more tokens, and all that follow the last one if they end with a `reason`.

        Like vLLM, tokens that wait together leave together: a chunk is not a token.
        """
        text = answer_text(self._generated, count).encode()
        opening = self._opening() if self._generated == 0 and self._ask.chat else b""
        self._generated += count
        if reason is None and not self._ask.continuous_usage:
            return b"".join((opening, self._before, text, self._after, b"}\n\n"))
        after = self._after
        if reason is not None:
            stop = b',"stop_reason":null,' if self._ask.chat else b","
            after = after.replace(
                b'"finish_reason":null,', b'"finish_reason":"%b"%b' % (reason.encode(), stop)
            )
        if self._ask.continuous_usage:
            after += b',"usage":' + msgspec.json.encode(usage(self._ask, self._generated))
        fingerprint = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        if reason is not None and not self._ask.include_usage:
            after += fingerprint
        events = b"".join((opening, self._before, text, after, b"}\n\n"))
        if reason is None:
            return events
        if self._ask.include_usage:
            totals = msgspec.json.encode(usage(self._ask, self._generated))
            events += b"".join((self._head, b',"choices":[],"usage":', totals, fingerprint, b"}\n\n"))
        return events + DONE

    def _opening(self) -> bytes:
        """The first event of a chat, which names the role."""
        delta = b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
        return self._head + delta + b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}\n\n'
