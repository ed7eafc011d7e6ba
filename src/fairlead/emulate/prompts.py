"""A tokenizer that anyone can redo by hand: one token for each word between white space.

It only has to say how long a prompt is, and to give equal text equal tokens. Whoever needs an exact length
writes as many words, or sends a list of token ids as vLLM accepts it.
"""

import zlib
from collections.abc import Sequence
from typing import Any

CHAT_TOKENS_PER_MESSAGE = 2
"""What a chat template adds to each message: its role and its end."""
CHAT_TOKENS_OF_ANSWER = 1
"""What a chat template adds at the end: the role of the answer."""
VOCABULARY = 32_000

ANSWER_WORDS = (" steady", " as", " she", " goes", " by", " the", " lee", " mark")
"""The text of an answer: these, over and over; a token each."""


class BadPrompt(ValueError):
    """The prompt is not of a form that vLLM takes."""


def answer_text(first: int, count: int) -> str:
    """The text of `count` tokens of an answer, from the token number `first` (counted from 0) on."""
    if count == 1:
        return ANSWER_WORDS[first % len(ANSWER_WORDS)]
    return "".join(ANSWER_WORDS[i % len(ANSWER_WORDS)] for i in range(first, first + count))


def count_text(text: str) -> int:
    """Tokens of a text; an empty one has one, as with a tokenizer that opens every prompt with a mark."""
    return max(1, len(text.split()))


def text_ids(text: str) -> list[int]:
    """One id for each token of a text: a hash of the word."""
    return [zlib.crc32(word.encode()) % VOCABULARY for word in text.split()] or [0]


def prompt_ids(prompt: Any) -> list[int]:
    """The ids of the `prompt` of a completion that `count_prompt` has counted."""
    if isinstance(prompt, str):
        return text_ids(prompt)
    if isinstance(prompt[0], str | list):
        return prompt_ids(prompt[0])
    return list(prompt)


def chat_ids(messages: Any) -> list[int]:
    """The ids of the `messages` of a chat that `count_chat` has counted."""
    ids = []
    for message, text in zip(messages, chat_texts(messages), strict=True):
        ids += [VOCABULARY + len(message["role"]), *(text_ids(text) if text.split() else []), VOCABULARY]
    return [*ids, VOCABULARY + len("assistant")]


def block_contents(prompt: list[int], output_tokens: int, block_size: int) -> tuple[int, ...]:
    """What the full blocks of a prompt and its answer contain, an id for each.

    An id stands for a block's tokens and all before them. The answer's last token is never computed.
    """
    answer = _ANSWER_IDS * (output_tokens // len(_ANSWER_IDS) + 1)
    ids = prompt + answer[: output_tokens - 1]
    contents = []
    content = 0
    for end in range(block_size, len(ids) + 1, block_size):
        content = hash((content, *ids[end - block_size : end]))
        contents.append(content)
    return tuple(contents)


def count_prompt(prompt: Any) -> int:
    """Tokens of the `prompt` of a completion: text, a list of ids, or a list with one of these.

    Raises:
        BadPrompt: for anything else; a list of several prompts is not emulated.
    """
    if isinstance(prompt, str):
        return count_text(prompt)
    if not isinstance(prompt, list):
        raise BadPrompt("prompt must be text or a list of token ids")
    if not prompt:
        raise BadPrompt("You must pass at least one prompt")
    if isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise BadPrompt("the emulator takes one prompt per request")
        return count_prompt(prompt[0])
    if not all(type(each) is int and each >= 0 for each in prompt):
        raise BadPrompt("a prompt of token ids is a list of whole numbers, none negative")
    return len(prompt)


def chat_texts(messages: Any) -> Sequence[str]:
    """The text of each message of a chat.

    Raises:
        BadPrompt: if they are not messages with a role, or a part is not text.
    """
    if not isinstance(messages, list) or not messages:
        raise BadPrompt("messages must be a list of at least one message")
    texts = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadPrompt("each message needs a role")
        content = message.get("content") or ""
        if isinstance(content, list):
            parts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
            if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
                raise BadPrompt("the emulator takes messages of text only")
            content = " ".join(parts)
        if not isinstance(content, str):
            raise BadPrompt("the content of a message is text or a list of parts")
        texts.append(content)
    return texts


def count_chat(messages: Any) -> int:
    """Tokens of the `messages` of a chat, those of the template included; `BadPrompt` as for `chat_texts`."""
    texts = chat_texts(messages)
    words = sum(len(text.split()) for text in texts)
    return words + CHAT_TOKENS_PER_MESSAGE * len(texts) + CHAT_TOKENS_OF_ANSWER


_ANSWER_IDS = text_ids("".join(ANSWER_WORDS))
