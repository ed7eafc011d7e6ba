"""How fast a backend is, found from the times of completions: on a clock that the backend moves."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

import fairlead.serve.speed
from fairlead.serve.probe import Finding, probe, suggest
from fairlead.serve.settings import BackendSettings, parse_settings
from fairlead.serve.speed import DECODED, LONG_PROMPT, REPEATS, SHORT_PROMPT, Answer, speed_of

Body = dict[str, Any]
Answering = Callable[[Body], tuple[int, Body]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fairlead.serve.speed, "perf_counter", clock)
    return clock


def ask(*servers: Answering, max_len: int | None = 4096) -> list[Finding]:
    """What a probe with --measure finds of servers that answer completions like this."""

    async def start(answering: Answering) -> asyncio.Server:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            status, content = 200, {}
            if path == "/v1/models":
                content = {"data": [{"id": "m", "max_model_len": max_len}]}
            elif path == "/v1/completions":
                length = int(head.lower().partition("content-length: ")[2].split()[0])
                status, content = answering(json.loads(await reader.readexactly(length)))
            elif path != "/health":
                status = 404
            body = json.dumps(content).encode()
            line = f"HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(line.encode() + body)
            await writer.drain()
            writer.close()

        return await asyncio.start_server(answer, "127.0.0.1", 0)

    async def main() -> list[Finding]:
        started = [await start(each) for each in servers]
        urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in started]
        try:
            return await probe([BackendSettings(url=url) for url in urls], 2.0, measure=True)
        finally:
            for server in started:
                server.close()

    return asyncio.run(main())


def model(
    clock: Clock, prefill_tokens_per_s: float, decode_iteration_s: float, prompts: list[list[int]]
) -> Answering:
    """A server that takes 3 ms there and back; every other request something else slows down."""

    def answer(body: Body) -> tuple[int, Body]:
        prompt, output = body["prompt"], body["max_tokens"]
        if isinstance(prompt, str):
            return 200, {}
        prompts.append(prompt)
        small = decode_iteration_s if len(prompt) == SHORT_PROMPT else len(prompt) / prefill_tokens_per_s
        clock.now += 0.003 + small + (output - 1) * decode_iteration_s + 0.5 * (len(prompts) % 2)
        return 200, {"usage": {"prompt_tokens": len(prompt), "completion_tokens": output}}

    return answer


def test_two_servers_of_known_speed(clock) -> None:
    prompts: list[list[int]] = []
    found = ask(model(clock, 8000.0, 0.01, prompts), model(clock, 2000.0, 0.03, prompts))
    for each, prefill, decode, speed in zip(found, (8000.0, 2000.0), (0.01, 0.03), (1.0, 0.25), strict=True):
        assert each.measured == pytest.approx((prefill, decode)) and each.speed == pytest.approx(speed)
        assert set(each.columns) == {"scraped_*", "kv_capacity_tokens", "max_num_seqs"}
    assert len(prompts) == 2 * 3 * REPEATS
    assert [len(p) for p in prompts[:3]] == [SHORT_PROMPT, SHORT_PROMPT, 2048]
    # No long prompt begins like another: nothing is found in a prefix cache.
    starts = [tuple(p[:16]) for p in prompts if len(p) == LONG_PROMPT]
    assert len(set(starts)) == len(starts)
    settings = parse_settings(yaml.safe_load(suggest(found)), "suggested")
    assert [b.prefill_tokens_per_s for b in settings.backends] == [8000.0, 2000.0]
    assert [b.decode_iteration_s for b in settings.backends] == [0.01, 0.03]
    assert [b.speed for b in settings.backends] == [1.0, 0.25]


def test_a_prompt_fits_into_a_small_context(clock) -> None:
    prompts: list[list[int]] = []
    (found,) = ask(model(clock, 8000.0, 0.01, prompts), max_len=300)
    assert found.measured == pytest.approx((8000.0, 0.01))
    assert max(map(len, prompts)) == 150


@pytest.mark.parametrize(
    ("answering", "reason"),
    [
        (lambda body: (400, {}), "answered with 400"),
        (lambda body: (200, {"choices": []}), "do not say how many tokens"),
        (lambda body: (200, {"usage": {"prompt_tokens": 8, "completion_tokens": 1}}), "not as long as asked"),
        (
            lambda body: (
                200,
                {"usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}},
            ),
            "took no longer than short ones",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_and_assumed(clock, answering: Answering, reason: str) -> None:
    (found,) = ask(answering)
    assert found.measured is None and found.speed is None and not found.error
    assert (
        reason in found.columns["decode_iteration_s"]
        and "0.01 is assumed" in found.columns["decode_iteration_s"]
    )
    assert "# decode_iteration_s: 0.01   # declare it" in suggest([found])


def test_the_times_of_three_answers() -> None:
    found = speed_of(Answer(0.02, 8, 1), Answer(0.02 + DECODED * 0.005, 8, 65), Answer(0.515, 1000, 1))
    assert found == pytest.approx((1000 / 0.5, 0.005))
