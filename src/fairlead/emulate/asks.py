"""What a client asks for: the body of a completion or chat request, checked as vLLM checks it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from fairlead.emulate.prompts import BadPrompt, block_contents, chat_ids, count_chat, count_prompt, prompt_ids

OUTPUT_TOKENS_HEADER = b"x-fairlead-output-tokens"
"""How many tokens the answer has, for replayed workloads: unlike `max_tokens`, no router looks at it."""
OUTPUT_TOKENS_ARGUMENT = "fairlead_output_tokens"
"""The same in the body's `vllm_xargs`, for gateways that drop headers that they do not know."""

BLOCKS_ARGUMENT = "fairlead_blocks"
"""In `vllm_xargs` too: what the full blocks of prompt and answer contain, an id for each. So a replayed
conversation finds its answers cached, which the emulator does not write as the workload has them."""

COMPLETION_MAX_TOKENS = 16
"""The limit on a completion that names none, by OpenAI's API and vLLM; a chat is limited by the context."""

_NOT_EMULATED = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logprobs": None,
    "prompt_logprobs": None,
    "suffix": None,
}


class Refused(Exception):
    """The request cannot be served; carries the HTTP status and vLLM's error object."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        """An error as vLLM reports it."""
        super().__init__(message)
        self.status = status
        self.error = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True)
class Ask:
    """A request that can be served."""

    chat: bool
    model: str
    prompt_tokens: int
    limit: int
    """Most tokens of output: as asked for, or as the context allows."""
    least: int
    """Least tokens of output (`min_tokens`, or the limit with `ignore_eos`)."""
    output_tokens: int | None
    """As a replayed workload has it; None: as drawn."""
    blocks: tuple[int, ...] | None
    """As a replayed workload has them; None: as the words have it."""
    prompt: Any
    """The prompt or the messages, as they came."""
    stream: bool
    include_usage: bool
    continuous_usage: bool

    def contents(self, output_tokens: int, block_size: int) -> tuple[int, ...]:
        """What the full blocks of the prompt and an answer of so many tokens contain.

        Raises:
            Refused: if the request tells it for another number of blocks.
        """
        if self.blocks is None:
            ids = chat_ids(self.prompt) if self.chat else prompt_ids(self.prompt)
            return block_contents(ids, output_tokens, block_size)
        needed = (self.prompt_tokens + output_tokens - 1) // block_size
        if len(self.blocks) != needed:
            raise _bad(f"{BLOCKS_ARGUMENT} has {len(self.blocks)} ids for {needed} full blocks")
        return self.blocks


def read(body: bytes, *, chat: bool, model: str, max_model_len: int, header: bytes = b"") -> Ask:
    """The request in `body`.

    Args:
        body: JSON.
        chat: of `/v1/chat/completions`, not `/v1/completions`.
        model: the name that is served.
        max_model_len: tokens of prompt and output together.
        header: the value of `OUTPUT_TOKENS_HEADER`, if there is one.

    Raises:
        Refused: with 404 for another model, with 400 for anything else that vLLM refuses, or that is not
            emulated.
    """
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise _bad(
            f"1 validation error:\n  {{'type': 'json_invalid', 'msg': 'JSON decode error: {error}'}}"
        ) from None
    if not isinstance(fields, dict):
        raise _bad("1 validation error:\n  the body must be an object")
    wanted = fields.get("model") or model
    if wanted != model:
        message = f"The model `{wanted}` does not exist. Valid aliases: {model}."
        raise Refused(404, message, "NotFoundError", "model")
    for name, neutral in _NOT_EMULATED.items():
        if fields.get(name, neutral) not in (neutral, None, False):
            raise _bad(f"{name} is not emulated", name)
    prompt_tokens = _count(fields, chat)
    room = max_model_len - prompt_tokens
    if room < 1:
        raise _bad(
            f"This model's maximum context length is {max_model_len} tokens. However, your request has "
            f"{prompt_tokens} input tokens. Please reduce the length of the input messages.",
            "input_tokens",
        )
    limit = _limit(fields, chat, room, max_model_len)
    least = _whole(fields, "min_tokens", 0) or 0
    if least > limit:
        raise _bad(f"min_tokens must be less than or equal to max_tokens={limit}, got {least}.", "min_tokens")
    options = fields.get("stream_options") or {}
    stream = bool(fields.get("stream"))
    if options and not stream:
        raise _bad("Stream options can only be defined when `stream=True`.", "stream_options")
    return Ask(
        chat=chat,
        model=model,
        prompt_tokens=prompt_tokens,
        limit=limit,
        least=limit if fields.get("ignore_eos") else least,
        output_tokens=_replayed(fields, header),
        blocks=_blocks(fields),
        prompt=fields["messages" if chat else "prompt"],
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
    )


def read_tokenize(body: bytes) -> tuple[int, list[int]]:
    """How many tokens, and which, the prompt or messages in the body of `/tokenize` have.

    Raises:
        Refused: if there are none.
    """
    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise _bad(f"JSON decode error: {error}") from None
    if not isinstance(fields, dict):
        raise _bad("the body must be an object")
    chat = "messages" in fields
    count = _count(fields, chat)
    return count, chat_ids(fields["messages"]) if chat else prompt_ids(fields["prompt"])


def _count(fields: dict[str, Any], chat: bool) -> int:
    try:
        if chat:
            return count_chat(fields.get("messages"))
        if fields.get("prompt") is None:
            raise _bad("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        return count_prompt(fields["prompt"])
    except BadPrompt as error:
        raise _bad(str(error), "messages" if chat else "prompt") from None


def _limit(fields: dict[str, Any], chat: bool, room: int, max_model_len: int) -> int:
    """Most tokens of output."""
    limit = _whole(fields, "max_completion_tokens", 1) if chat else None
    if limit is None:
        limit = _whole(fields, "max_tokens", 1)
    if limit is None:
        return room if chat else min(COMPLETION_MAX_TOKENS, room)
    if limit > max_model_len:
        raise _bad(
            f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            "max_tokens",
        )
    if limit > room:
        raise _bad(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {limit} "
            f"output tokens and your prompt contains {max_model_len - room} input tokens. Please reduce the "
            "length of the input prompt or the number of requested output tokens.",
            "input_tokens",
        )
    return limit


def _replayed(fields: dict[str, Any], header: bytes) -> int | None:
    arguments = fields.get("vllm_xargs")
    value = arguments.get(OUTPUT_TOKENS_ARGUMENT) if isinstance(arguments, dict) else None
    if value is None and not header:
        return None
    try:
        tokens = int(value if value is not None else header)
    except (TypeError, ValueError):
        tokens = 0
    if tokens < 1:
        raise _bad(f"{OUTPUT_TOKENS_ARGUMENT} must be a whole number, at least 1")
    return tokens


def _blocks(fields: dict[str, Any]) -> tuple[int, ...] | None:
    arguments = fields.get("vllm_xargs")
    ids = arguments.get(BLOCKS_ARGUMENT) if isinstance(arguments, dict) else None
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(each) is int for each in ids):
        raise _bad(f"{BLOCKS_ARGUMENT} must be a list of whole numbers")
    return tuple(ids)


def _whole(fields: dict[str, Any], name: str, least: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise _bad(f"1 validation error:\n  {name}: Input should be a valid integer, got {value!r}", name)
    if value < least:
        raise _bad(f"{name} must be at least {least}, got {value}.", name)
    return value


def _bad(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, "BadRequestError", param)
