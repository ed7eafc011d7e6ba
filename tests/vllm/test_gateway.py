"""The gateway before two real vLLM servers."""

import contextlib
import http.client
import json
import threading
from pathlib import Path

import pytest
from tests.vllm.servers import Process, gateway, get, metric, post, stream, vllm_bench, wait_for

from fairlead.view import schema

pytestmark = pytest.mark.vllm

LONG = {"model": "tiny", "prompt": "once upon a time", "max_tokens": 3000, "ignore_eos": True}


def running(server: Process) -> float:
    return metric(get(f"{server.url}/metrics"), "vllm:num_requests_running")


def served(server: Process) -> float:
    return metric(get(f"{server.url}/metrics"), "vllm:request_success_total")


def complete(front: Process, tokens: int = 4) -> int:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
    status, _, answer = post(f"{front.url}/v1/completions", body)
    assert status == 200, answer
    return int(answer["usage"]["completion_tokens"])


def test_completions_and_chats_reach_both_servers(front, servers):
    before = [served(server) for server in servers]
    for _ in range(6):
        assert complete(front) == 4
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        status, _, answer = post(f"{front.url}/v1/chat/completions", {**chat, "ignore_eos": True})
        assert status == 200 and answer["usage"]["completion_tokens"] == 3
    assert sum(served(server) for server in servers) == sum(before) + 12
    assert '"tiny"' in get(f"{front.url}/v1/models")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streams_pass_through_whole(front, servers, path):
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    options = {"stream_options": {"include_usage": True}}
    body = {"model": "tiny", **prompt, "max_tokens": 50, "ignore_eos": True, **options}
    *events, done = stream(f"{front.url}{path}", body)
    assert done == "[DONE]" and events[-1]["usage"]["completion_tokens"] == 50
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]][-1] == "length"


def test_errors_of_the_servers_reach_the_client(front, servers):
    status, _, answer = post(f"{front.url}/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 0})
    assert (status, answer["error"]["param"]) == (400, "max_tokens")


HI = [{"role": "user", "content": "hi"}]
PATHS: dict[str, dict[str, object]] = {
    "/v1/responses": {"input": "hi there", "max_output_tokens": 12},
    "/v1/messages": {"messages": HI, "max_tokens": 12},
    "/v1/embeddings": {"input": "hi there"},
    "/tokenize": {"prompt": "hi there"},
    "/detokenize": {"tokens": [30, 31, 32]},
    "/v1/rerank": {"query": "hi", "documents": ["there"]},
    "/v1/nothing": {},
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_answers_as_the_server_does(front, servers, path):
    body: dict[str, object] = {"model": "tiny", **PATHS[path]}
    direct, _, expected = post(f"{servers[0].url}{path}", body)
    status, _, answer = post(f"{front.url}{path}", body)
    assert (status, set(answer)) == (direct, set(expected))
    if path in ("/v1/responses", "/v1/messages", "/tokenize", "/detokenize"):
        assert status == 200


def test_tokens_of_every_kind_of_stream_are_counted(front, servers):
    """The gateway's count is that of the servers, whichever API streams."""

    def counted() -> float:
        return metric(get(f"{front.url}/metrics"), "fairlead_backend_output_tokens_total")

    def generated() -> float:
        return sum(metric(get(f"{server.url}/metrics"), "vllm:generation_tokens_total") for server in servers)

    for path in ("/v1/responses", "/v1/messages"):
        before = counted(), generated()
        events = list(stream(f"{front.url}{path}", {"model": "tiny", **PATHS[path]}))
        assert len(events) > 3
        assert wait_for(lambda before=before: counted() > before[0])
        assert counted() - before[0] == generated() - before[1] > 0


def test_a_client_that_leaves_frees_the_server(front, servers):
    events = stream(f"{front.url}/v1/completions", LONG)
    next(events)
    assert sum(running(server) for server in servers) == 1
    events.close()
    assert wait_for(lambda: sum(running(server) for server in servers) == 0)


def test_both_pages_of_metrics_agree(front, servers):
    before = sum(metric(get(f"{server.url}/metrics"), "vllm:generation_tokens_total") for server in servers)
    for _ in range(5):
        complete(front, tokens=7)
    after = sum(metric(get(f"{server.url}/metrics"), "vllm:generation_tokens_total") for server in servers)
    assert after - before == 35
    assert "fairlead" in get(f"{front.url}/metrics")


@pytest.mark.parametrize("how", ["tokenizer", "backend"])
def test_prompts_are_counted_as_the_servers_do(servers, environment: Path, tmp_path, how):
    """The view has the tokens of `usage`: with the tokenizer's file once the template's marks are known."""
    log = tmp_path / "decisions.jsonl"
    options = ["--set", f"logs.decisions={log}", "--set", "tokens.count_within=20", "--policy", "lor"]
    if how == "tokenizer":
        options += ["--tokenizer", str(environment / "model" / "tokenizer.json")]
    else:
        options += ["--set", "tokens.prompts=backend"]
    front = gateway([server.url for server in servers], tmp_path / "gateway.log", *options)
    front.start()
    try:
        front.wait_until_ready()
        for i in range(4):
            text = "how many tokens are there? " * (i + 1)
            status, _, _ = post(
                f"{front.url}/v1/completions", {"model": "tiny", "prompt": text, "max_tokens": 1}
            )
            assert status == 200
            messages = [{"role": "user", "content": text}]
            chat = {"model": "tiny", "messages": messages, "max_tokens": 1}
            assert post(f"{front.url}/v1/chat/completions", chat)[0] == 200
    finally:
        front.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 8
    first = 2 if how == "tokenizer" else 0
    for line in lines[first:]:
        assert line["request"][schema.PROMPT_TOKENS] == line["prompt_tokens"]


def test_vllms_own_load_client(front, servers, environment: Path, tmp_path):
    before = [served(server) for server in servers]
    report = vllm_bench(environment, front.url, tmp_path / "bench.json")
    assert (report["completed"], report["total_output_tokens"]) == (40, 800)
    gained = [served(server) - before[i] for i, server in enumerate(servers)]
    assert min(gained) > 0 and sum(gained) >= 40


def test_a_server_that_is_killed_in_mid_stream_and_comes_back(front, servers):
    """Its stream ends early, the other one serves everyone else, and it is used again when it is back."""
    cut = threading.Event()

    def read() -> None:
        events: list[object] = []
        with contextlib.suppress(OSError, http.client.HTTPException):
            events.extend(stream(f"{front.url}/v1/completions", LONG))
        if "[DONE]" not in events:
            cut.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert wait_for(lambda: sum(running(server) for server in servers) == 1)
    victim = next(server for server in servers if running(server))
    other = next(server for server in servers if server is not victim)
    victim.kill()
    try:
        before = served(other)
        for _ in range(10):
            assert complete(front) == 4
        assert served(other) == before + 10
        reader.join(30)
        assert cut.is_set()
    finally:
        victim.start()
        victim.wait_until_ready()

    def used() -> bool:
        complete(front)
        return served(victim) > 0

    assert wait_for(used, 60)
