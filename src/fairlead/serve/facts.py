"""What a request's body tells a router: prompt, limits, session.

The body is not rewritten and hardly parsed: msgspec cuts the prompt out as raw bytes, and a body that is not
JSON is passed on for the backend to refuse.
"""

import hashlib
import re
from typing import Any, NamedTuple

import msgspec

from fairlead.serve.messages import NOT_JSON

GENERATE = frozenset(
    (
        b"/v1/completions",
        b"/v1/chat/completions",
        b"/v1/responses",
        b"/v1/messages",
        b"/inference/v1/generate",
    )
)
"""Paths whose answers are generated token by token: the ledger expects output from them."""
STATELESS = GENERATE | frozenset(
    (
        b"/v1/embeddings",
        b"/v1/rerank",
        b"/v1/score",
        b"/v1/classify",
        b"/v1/pooling",
        b"/v1/moderations",
        b"/v1/audio/transcriptions",
        b"/v1/audio/translations",
    )
)
"""POST requests that change nothing on a backend: sending one again elsewhere is safe."""

_SAFE_METHODS = (b"GET", b"HEAD", b"OPTIONS")
_NOTHING = msgspec.Raw(b"")


class _Body(msgspec.Struct, gc=False):
    model: Any = None
    stream: Any = None
    prompt: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    stream_options: msgspec.Raw = _NOTHING
    user: Any = None
    session_id: Any = None
    prompt_cache_key: Any = None
    store: Any = None


_decoder = msgspec.json.Decoder(_Body)


class Facts(NamedTuple):
    """What is known of a request before it is answered."""

    model: str
    """As the client named it; empty if it did not."""
    stream: bool
    """Whether the answer will come token by token."""
    prompt_bytes: int
    """Size of the prompt as JSON; the whole body's where the prompt could not be found."""
    prompt_tokens: int
    """Known exactly where the prompt is a list of token ids; otherwise -1."""
    max_tokens: int
    """The client's limit on the output; 0: none given."""
    session: str
    """What the client says to belong together (`user`, `session_id`, `prompt_cache_key`); empty if
    nothing."""
    prompt: bytes
    """The prompt as JSON, for its prefixes; empty where it could not be found."""
    stored: bool
    """Whether the backend may keep the answer (`store` of the Responses API)."""
    no_stream_options: bool = False
    """Whether it is known that the client said nothing about `stream_options` of its stream."""


def unknown(size: int) -> Facts:
    """The facts of a body of `size` bytes that cannot be read."""
    return Facts("", False, size, -1, 0, "", b"", False)


_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_LIMIT = re.compile(rb'"max(?:_completion|_output)?_tokens"\s*:\s*(\d{1,9})')


def partial_facts(prefix: bytes, size: int) -> Facts:
    """The facts in the beginning of a body of at least `size` bytes that is too large to be read whole.

    Quotes inside JSON strings are escaped, so that what is found here is a key of the request, if perhaps a
    nested one.
    """
    model, limit = _MODEL.search(prefix), _LIMIT.search(prefix)
    return Facts(
        model[1].decode("utf-8", "replace") if model else "",
        _STREAMED.search(prefix) is not None,
        size,
        -1,
        int(limit[1]) if limit else 0,
        "",
        b"",
        True,
    )


def read_facts(body: bytes, path: bytes) -> Facts:
    """The facts in a complete body; those of `unknown` if it is no JSON object."""
    try:
        parsed = _decoder.decode(body)
    except NOT_JSON:
        return unknown(len(body))
    prompt = bytes(parsed.prompt) or bytes(parsed.messages) or bytes(parsed.input)
    size = len(prompt)
    for beside in (parsed.system, parsed.instructions, parsed.tools):
        if beside is not _NOTHING:
            size += len(bytes(beside))
    limit = 0
    for given in (parsed.max_completion_tokens, parsed.max_tokens, parsed.max_output_tokens):
        if type(given) is int and given > 0:
            limit = given
            break
    session = ""
    for name in (parsed.session_id, parsed.prompt_cache_key, parsed.user):
        if type(name) is str and name:
            session = name
            break
    return Facts(
        parsed.model if type(parsed.model) is str else "",
        parsed.stream is True,
        size or len(body),
        _token_ids(prompt),
        min(limit, 2**31),
        session,
        prompt,
        path == b"/v1/responses" and parsed.store is not False,
        parsed.stream is True and not bytes(parsed.stream_options),
    )


def repeatable(method: bytes, path: bytes, facts: Facts) -> bool:
    """Whether a request may reach two backends without harm."""
    return method in _SAFE_METHODS or (method == b"POST" and path in STATELESS and not facts.stored)


def _token_ids(prompt: bytes) -> int:
    """How many token ids a prompt lists (one list, or several), or -1 if it is text."""
    if prompt[:1] != b"[":
        return -1
    inner = prompt.lstrip(b"[ \t\r\n")
    if not inner[:1].isdigit():
        return -1
    return prompt.count(b",") + 1


def session_number(session: str) -> int:
    """An opaque number for a session, 0 for none; exact as a float."""
    if not session:
        return 0
    return int.from_bytes(hashlib.blake2b(session.encode(), digest_size=6).digest(), "little") | 1
