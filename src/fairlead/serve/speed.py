"""How fast a backend is, measured while it has nothing else to do: what its settings have to declare."""

import random
from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from fairlead.serve.backend import Backend
from fairlead.serve.fetch import fetch

LONG_PROMPT = 2048
"""Tokens of the prompt whose prefill is timed: a whole iteration's budget in most servers."""
SHORT_PROMPT = 8
DECODED = 64
"""Tokens that are decoded one by one, after the first."""
REPEATS = 3
"""Of each request. The least time counts: whatever else happens only makes a request slower."""
ORDINARY_IDS = range(20, 84)
"""Token ids that mean nothing special in any vocabulary, small ones too."""


class Speed(NamedTuple):
    """What a backend's settings declare."""

    prefill_tokens_per_s: float
    decode_iteration_s: float
    """With a batch of one."""


class Answer(NamedTuple):
    """One completion, timed as a whole."""

    seconds: float
    prompt_tokens: int
    """As the backend's `usage` counts them."""
    output_tokens: int


async def measure_speed(backend: Backend, model: str, longest: int | None, timeout: float) -> Speed:
    """Send three completions of each kind, one after the other, and compare their times.

    Prompts are token ids that no earlier prompt began with, so that nothing is found in a prefix cache.

    Args:
        backend: whom; it should be idle.
        model: whom to ask for.
        longest: prompt and answer together, tokens, if the backend says.
        timeout: of each request, s.

    Raises:
        ValueError: with the reason, if it cannot be measured.
    """
    prompt = LONG_PROMPT if longest is None else min(LONG_PROMPT, longest // 2)
    kinds = {"short": (SHORT_PROMPT, 1), "decoded": (SHORT_PROMPT, DECODED + 1), "long": (prompt, 1)}
    found: dict[str, list[Answer]] = {kind: [] for kind in kinds}
    for _ in range(REPEATS):
        for kind, (prompt_tokens, output_tokens) in kinds.items():
            found[kind].append(await _complete(backend, model, prompt_tokens, output_tokens, timeout))
    return speed_of(*(min(answers) for answers in found.values()))


def speed_of(short: Answer, decoded: Answer, long: Answer) -> Speed:
    """The speed that explains three times.

    A short prompt takes the way there and back and one small iteration; more tokens take a decode iteration
    each; a long prompt takes its prefill in place of the small iteration.

    Raises:
        ValueError: if the times contradict that.
    """
    if decoded.output_tokens <= short.output_tokens or long.prompt_tokens <= short.prompt_tokens:
        raise ValueError("its answers are not as long as asked for, or it does not count their tokens")
    iteration = (decoded.seconds - short.seconds) / (decoded.output_tokens - short.output_tokens)
    prefill = long.seconds - short.seconds + iteration
    if not (iteration > 0.0 and prefill > 0.0):
        raise ValueError(
            "longer answers took no longer than short ones: it was busy, or is no model's server"
        )
    return Speed(long.prompt_tokens / prefill, iteration)


async def _complete(
    backend: Backend, model: str, prompt_tokens: int, output_tokens: int, timeout: float
) -> Answer:
    prompt = random.choices(ORDINARY_IDS, k=prompt_tokens)
    body = {"model": model, "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True}
    before = perf_counter()
    try:
        answer = await fetch(backend, "/v1/completions", timeout, json=msgspec.json.encode(body))
    except OSError as error:
        raise ValueError(str(error) or f"no answer within {timeout:g} s") from None
    seconds = perf_counter() - before
    if answer.status != 200:
        raise ValueError(f"a completion is answered with {answer.status}")
    try:
        usage: Any = msgspec.json.decode(answer.body)["usage"]
        return Answer(seconds, int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        raise ValueError("its answers do not say how many tokens they have (usage)") from None
