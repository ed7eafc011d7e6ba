"""Prompts for requests that only say how long they are: as words, or as token ids."""

import hashlib
from typing import Protocol

from fairlead.serve.speed import ORDINARY_IDS
from fairlead.workload.requests import Requests

_LEAST_LETTERS, _MOST_LETTERS = 2, 6
_LETTERS = bytes(ord("a") + byte % 26 for byte in range(256))


class Prompts(Protocol):
    """What a client sends as the prompts of its requests."""

    def prompt(self, i: int) -> str | list[int]:
        """The prompt of request i, as long as the workload has it."""
        ...


class Words:
    """Texts of as many words as prompts have tokens: so the emulator counts.

    Words are of two to six letters: with the space behind it, a token takes five bytes on average, some more
    than others, as with a real tokenizer.
    """

    def __init__(self, requests: Requests) -> None:
        """For `requests`."""
        self._requests = requests
        self._own = _words("own", int(requests.prompt_tokens.max(initial=1)))
        self._blocks: dict[int, str] = {}

    def prompt(self, i: int) -> str:
        """The words of the full blocks of request i, then one of its own and more."""
        block_size, shared_ids, tokens = _blocks(self._requests, i)
        parts = [self._block(each, block_size) for each in shared_ids]
        if tokens > 0:
            parts += [f"r{i}", *self._own[: tokens - 1]]
        return " ".join(parts)

    def _block(self, content: int, size: int) -> str:
        if content not in self._blocks:
            self._blocks[content] = " ".join(_words(f"block/{content}", size))
        return self._blocks[content]


def _words(name: str, count: int) -> list[str]:
    """Always the same `count` words for a name."""
    drawn = hashlib.shake_128(name.encode()).digest(count * (1 + _MOST_LETTERS))
    letters = drawn[count:].translate(_LETTERS).decode()
    lengths = [_LEAST_LETTERS + byte % (1 + _MOST_LETTERS - _LEAST_LETTERS) for byte in drawn[:count]]
    starts = range(0, count * _MOST_LETTERS, _MOST_LETTERS)
    return [letters[start : start + length] for start, length in zip(starts, lengths, strict=True)]


class TokenIds:
    """Lists of token ids, which have the wanted length with every tokenizer.

    Where blocks have the same content, so have the prompts. Under another salt no two prompts begin alike, so
    that no run finds in a prefix cache what the one before has left there.
    """

    def __init__(self, requests: Requests, salt: str) -> None:
        """For `requests`; `salt` names the run."""
        self._requests = requests
        self._salt = salt

    def prompt(self, i: int) -> list[int]:
        """Ids drawn from the blocks' contents, and behind them from the request's own number."""
        block_size, shared_ids, tokens = _blocks(self._requests, i)
        ids = [each for content in shared_ids for each in self._draw(f"block/{content}", block_size)]
        return ids + self._draw(f"own/{i}", tokens)

    def _draw(self, name: str, count: int) -> list[int]:
        drawn = hashlib.shake_128(f"{self._salt}/{name}".encode()).digest(count)
        return [ORDINARY_IDS[byte % len(ORDINARY_IDS)] for byte in drawn]


def _blocks(requests: Requests, i: int) -> tuple[int, list[int], int]:
    """Block size, contents of the full blocks of the prompt of request i, and the tokens behind them."""
    tokens, content = int(requests.prompt_tokens[i]), requests.content
    if content is None:
        return 0, [], tokens
    first = int(content.offsets[i])
    full = min(tokens // content.block_size, int(content.offsets[i + 1]) - first)
    return (
        content.block_size,
        content.ids[first : first + full].tolist(),
        tokens - full * content.block_size,
    )
