"""vLLM's HTTP interface, byte by byte over a transport in memory, on a clock that stands still."""

import asyncio
import json
import math
from typing import Any

import httptools
import numpy as np
import pytest

from fairlead.emulate.asks import OUTPUT_TOKENS_HEADER
from fairlead.emulate.endpoint import Endpoint
from fairlead.emulate.engine import Engine
from fairlead.emulate.lengths import Lengths
from fairlead.serve.frontend import ClientConnection
from fairlead.simulator.reference import ReplicaSpec, simulate
from fairlead.simulator.timing import Coefficients
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import load_scenario

TIMING = Coefficients(1e-3, 8e-3, 8e-5, 0.0, 1e-5, 8e-8, 4e-9)
ONE_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Wire(asyncio.Transport):
    """The client's end of a connection, and the parser of what comes back."""

    def __init__(self, endpoint: Endpoint, clock) -> None:
        super().__init__()
        self.clock = clock
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.pieces: list[tuple[float, bytes]] = []
        self.finished_s = math.nan
        self.aborted = False
        self._parser = httptools.HttpResponseParser(self)
        self.connection = ClientConnection(endpoint)
        self.connection.connection_made(self)

    def write(self, data: Any) -> None:
        self._parser.feed_data(bytes(data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def close(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def can_write_eof(self) -> bool:
        return False

    def on_message_begin(self) -> None:
        self.headers, self.body, self.pieces, self.finished_s = {}, b"", [], math.nan

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.pieces.append((self.clock.now(), data))

    def on_message_complete(self) -> None:
        self.finished_s = self.clock.now()

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.connection.data_received("\r\n".join([*lines, "", ""]).encode() + data)

    def ask(self, path: str, **body: Any) -> None:
        self.send("POST", path, body)

    def leave(self) -> None:
        self.connection.connection_lost(None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events: JSON, but for the last, `[DONE]`."""
        *events, last = self.body.decode().split("\n\n")
        assert last == "" and all(event.startswith("data: ") for event in events)
        texts = [event.removeprefix("data: ") for event in events]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]


@pytest.fixture
def lengths() -> Lengths:
    return Lengths(load_scenario("chat-equal"), seed=0)


@pytest.fixture
def endpoint(clock, lengths) -> Endpoint:
    """Every iteration lasts one second."""
    return Endpoint(Engine(0, ReplicaSpec(ONE_SECOND, 100, 10, 4, 100), clock), "tiny", lengths)


@pytest.fixture
def wire(endpoint, clock) -> Wire:
    return Wire(endpoint, clock)


def test_first_token_and_end_come_over_http_when_the_simulator_says(clock, lengths):
    random = np.random.default_rng(5)
    requests = Requests(
        np.cumsum(random.exponential(0.04, 50)), random.integers(1, 700, 50), random.integers(2, 50, 50)
    )
    specs = [ReplicaSpec(TIMING, 512, 16, 16, kv_blocks) for kv_blocks in (2000, 100)]
    placed = random.integers(0, 2, 50).tolist()
    expected = simulate(specs, requests, placed)
    endpoints = [Endpoint(Engine(i, spec, clock), "tiny", lengths) for i, spec in enumerate(specs)]
    wires = []
    for i, replica in enumerate(placed):
        clock.run_until(float(requests.arrival_s[i]))
        wire = Wire(endpoints[replica], clock)
        limit = int(requests.output_tokens[i])
        prompt = [7] * int(requests.prompt_tokens[i])
        wire.ask("/v1/completions", prompt=prompt, max_tokens=limit, ignore_eos=True, stream=True)
        wires.append(wire)
    clock.run_until(math.inf)
    assert [wire.pieces[0][0] for wire in wires] == expected.first_token_s.tolist()
    assert [wire.finished_s for wire in wires] == expected.finish_s.tolist()
    assert [int(wire.headers["x-fairlead-replica"]) for wire in wires] == placed
    assert expected.preemptions.sum() > 0


def test_a_streamed_completion(wire, clock):
    options = {"include_usage": True}
    wire.ask(
        "/v1/completions", model="tiny", prompt="a b c", max_tokens=3, stream=True, stream_options=options
    )
    assert (wire.status, wire.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert wire.body == b""  # the head comes at once, as vLLM's does
    clock.run_until(math.inf)
    *chunks, usage, done = wire.events
    assert done == "[DONE]" and all(chunk["object"] == "text_completion" for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " steady as she"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "total_tokens": 6, "completion_tokens": 3}
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["id"].startswith("cmpl-")


def test_a_streamed_chat_opens_with_the_role(wire, clock):
    messages = [{"role": "user", "content": "hello there"}]
    wire.ask("/v1/chat/completions", messages=messages, max_completion_tokens=2, ignore_eos=True, stream=True)
    clock.run_until(math.inf)
    first, *chunks, done = wire.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": " steady"}, {"content": " as"}]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


def test_continuous_usage_is_in_every_chunk(wire, clock):
    options = {"include_usage": True, "continuous_usage_stats": True}
    wire.ask(
        "/v1/completions", prompt="a", max_tokens=2, ignore_eos=True, stream=True, stream_options=options
    )
    clock.run_until(math.inf)
    assert [chunk["usage"]["completion_tokens"] for chunk in wire.events[:-1]] == [1, 2, 2]


def test_tokens_that_wait_together_leave_in_one_chunk(wire, endpoint, clock):
    wire.ask("/v1/completions", prompt="a", max_tokens=4, ignore_eos=True, stream=True)
    clock._now = 3.5
    endpoint.engine.catch_up()
    assert [event["choices"][0]["text"] for event in wire.events] == [" steady as she"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_answer_that_is_not_streamed(wire, clock, path):
    prompt = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a b c d"}
    wire.ask(path, **prompt, max_tokens=3, ignore_eos=True)
    clock.run_until(2.5)
    assert wire.body == b""
    clock.run_until(math.inf)
    assert wire.finished_s == 3.0
    choice = wire.json["choices"][0]
    assert (choice["message"]["content"] if "chat" in path else choice["text"]) == " steady as she"
    assert choice["finish_reason"] == "length"
    assert wire.json["usage"]["prompt_tokens"] == 4 and wire.json["usage"]["completion_tokens"] == 3


def test_a_connection_carries_one_request_after_the_other(wire, clock):
    for _ in range(3):
        wire.ask("/v1/completions", prompt="a", max_tokens=1)
        clock.run_until(clock.now() + 5)
        assert wire.status == 200 and wire.json["usage"]["completion_tokens"] == 1


def test_the_length_of_an_answer(wire, endpoint, clock, lengths):
    def length(headers: dict[str, str] | None = None, **body: Any) -> tuple[int, str]:
        wire.send("POST", "/v1/completions", {"prompt": "a", **body}, headers)
        clock.run_until(clock.now() + 500)
        return wire.json["usage"]["completion_tokens"], wire.json["choices"][0]["finish_reason"]

    hint = {OUTPUT_TOKENS_HEADER.decode(): "5"}
    assert length(hint) == (5, "stop")
    assert length(hint, max_tokens=4) == (4, "length")
    assert length(hint, max_tokens=40, min_tokens=7) == (7, "stop")
    assert length(hint, max_tokens=40, ignore_eos=True) == (40, "length")
    assert length(max_tokens=40, vllm_xargs={"fairlead_output_tokens": 9}) == (9, "stop")
    assert length(ignore_eos=True) == (16, "length")  # OpenAI's default
    drawn = [length(max_tokens=300)[0] for _ in range(5)]
    again = Lengths(load_scenario("chat-equal"), seed=0)
    assert drawn == [min(again.next(), 300) for _ in range(5)] and len(set(drawn)) > 1


def test_a_client_that_leaves_frees_its_request(wire, endpoint, clock):
    wire.ask("/v1/completions", prompt=[1] * 8, max_tokens=50, ignore_eos=True, stream=True)
    other = Wire(endpoint, clock)
    other.ask("/v1/completions", prompt=[1] * 8, max_tokens=2, ignore_eos=True)
    clock.run_until(1.5)
    assert endpoint.load == 2 and endpoint.engine.running == 2
    wire.leave()
    clock.run_until(math.inf)
    assert (endpoint.load, endpoint.engine.kv_usage) == (0, 0.0)
    assert endpoint.engine.tally.finished == {"stop": 0, "length": 1, "abort": 1}
    assert len(wire.pieces) == 1 and other.status == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b'{"prompt":', 400, None),
        (b"[]", 400, None),
        ({"prompt": "a", "model": "other"}, 404, "model"),
        ({"model": "tiny"}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [1, "x"]}, 400, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": "y"}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 401}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 400}, 400, "input_tokens"),
        ({"prompt": [1] * 400}, 400, "input_tokens"),
        ({"prompt": "a", "max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
        ({"prompt": "a", "n": 2}, 400, "n"),
        ({"prompt": "a", "logprobs": 1}, 400, "logprobs"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"prompt": "a", "vllm_xargs": {"fairlead_output_tokens": 0}}, 400, None),
    ],
)
def test_what_cannot_be_served_is_refused_as_vllm_does(wire, endpoint, body, status, param):
    wire.send("POST", "/v1/completions", body)
    assert wire.status == status
    error = wire.json["error"]
    assert (error["code"], error["param"]) == (status, param) and error["message"] and error["type"]
    assert endpoint.engine.waiting == 0 and endpoint.load == 0


@pytest.mark.parametrize(
    "messages", [None, [], "a", [{"content": "a"}], [{"role": "user", "content": [{"type": "image_url"}]}]]
)
def test_what_are_not_messages_is_refused(wire, messages):
    wire.ask("/v1/chat/completions", messages=messages)
    assert (wire.status, wire.json["error"]["param"]) == (400, "messages")


def test_the_other_routes(wire):
    wire.send("GET", "/health")
    assert (wire.status, wire.body) == (200, b"")
    wire.send("GET", "/v1/models")
    assert [(card["id"], card["max_model_len"]) for card in wire.json["data"]] == [("tiny", 400)]
    wire.send("GET", "/version")
    assert set(wire.json) == {"version"}
    wire.send("GET", "/load")
    assert wire.json == {"server_load": 0}
    wire.send("POST", "/tokenize", {"prompt": "one two one"})
    assert wire.json["count"] == 3 and wire.json["tokens"][0] == wire.json["tokens"][2]
    wire.send("POST", "/tokenize", {"messages": [{"role": "user", "content": "one two"}]})
    assert wire.json["count"] == len(wire.json["tokens"]) == 5
    wire.send("GET", "/nothing")
    assert wire.status == 404
    wire.send("GET", "/v1/completions")
    assert wire.status == 405
    wire.send("PUT", "/health")
    assert wire.status == 405


def samples(page: str) -> dict[str, float]:
    """Prometheus' text format: `name{labels}` -> value."""
    return {
        key: float(value)
        for key, _, value in (line.rpartition(" ") for line in page.splitlines())
        if key[0] != "#"
    }


def test_metrics_are_those_of_the_engine(wire, endpoint, clock):
    for _ in range(12):
        Wire(endpoint, clock).ask("/v1/completions", prompt=[1] * 8, max_tokens=3, ignore_eos=True)
    clock.run_until(1.5)
    wire.send("GET", "/metrics")
    page = wire.body.decode()
    labels = '{engine="0",model_name="tiny"}'
    found = samples(page)
    assert found[f"vllm:num_requests_running{labels}"] == 10
    assert found[f"vllm:num_requests_waiting{labels}"] == 2
    assert found[f"vllm:kv_cache_usage_perc{labels}"] == pytest.approx(30 / 100)
    clock.run_until(math.inf)
    wire.send("GET", "/metrics")
    found = samples(wire.body.decode())
    assert found[f"vllm:prompt_tokens_total{labels}"] == 96
    assert found[f"vllm:generation_tokens_total{labels}"] == 36
    assert found['vllm:request_success_total{engine="0",model_name="tiny",finished_reason="length"}'] == 12
    assert found[f"vllm:time_to_first_token_seconds_count{labels}"] == 12
    assert found[f"vllm:time_to_first_token_seconds_sum{labels}"] == 10 * 1 + 2 * 4
    assert found[f"vllm:e2e_request_latency_seconds_sum{labels}"] == 10 * 3 + 2 * 6
    assert found[f"vllm:inter_token_latency_seconds_sum{labels}"] == 24
    assert found[f"vllm:request_queue_time_seconds_sum{labels}"] == 2 * 3
    assert found['vllm:e2e_request_latency_seconds_bucket{engine="0",model_name="tiny",le="5.0"}'] == 10
    assert found['vllm:e2e_request_latency_seconds_bucket{engine="0",model_name="tiny",le="+Inf"}'] == 12


@pytest.fixture
def caching(clock, lengths) -> Wire:
    """A connection to a server with prefix caching and blocks of four tokens."""
    spec = ReplicaSpec(ONE_SECOND, 100, 10, 4, 100, prefix_caching=True)
    return Wire(Endpoint(Engine(0, spec, clock), "tiny", lengths), clock)


def hits(wire: Wire) -> tuple[float, float]:
    """Hits and queries of the prefix cache, tokens."""
    wire.send("GET", "/metrics")
    found = samples(wire.body.decode())
    labels = '{engine="0",model_name="tiny"}'
    return found[f"vllm:prefix_cache_hits_total{labels}"], found[f"vllm:prefix_cache_queries_total{labels}"]


def test_the_next_turn_of_a_chat_finds_the_last_one_cached(caching, clock):
    messages = [{"role": "user", "content": "one two three"}]
    caching.ask("/v1/chat/completions", messages=messages, max_tokens=9, ignore_eos=True)
    clock.run_until(clock.now() + 20)
    messages.append(caching.json["choices"][0]["message"])
    assert hits(caching) == (0, 6)
    messages.append({"role": "user", "content": "four"})
    caching.ask("/v1/chat/completions", messages=messages, max_tokens=1)
    clock.run_until(clock.now() + 20)
    # Six tokens of the first turn and eight computed ones of its answer: three full blocks.
    assert hits(caching) == (12, 6 + 20)


def test_replayed_blocks_count_instead_of_the_words(caching, clock):
    for i, blocks in enumerate(([7, 8], [7, 8, 9])):
        arguments = {"fairlead_output_tokens": 1, "fairlead_blocks": blocks}
        prompt = [i] * (4 * len(blocks))
        caching.ask("/v1/completions", prompt=prompt, max_tokens=50, vllm_xargs=arguments)
        clock.run_until(clock.now() + 20)
        assert caching.status == 200
    assert hits(caching) == (8, 20)
    wrong = {"fairlead_output_tokens": 1, "fairlead_blocks": [1]}
    caching.ask("/v1/completions", prompt=[1] * 8, max_tokens=50, vllm_xargs=wrong)
    assert caching.status == 400 and "2 full blocks" in caching.json["error"]["message"]


def test_every_metric_has_a_type_and_help_and_histograms_add_up(wire):
    wire.send("GET", "/metrics")
    lines = wire.body.decode().splitlines()
    typed = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert {line.split()[2] for line in lines if line.startswith("# HELP")} == set(typed)
    for key in samples(wire.body.decode()):
        name = key.partition("{")[0]
        family = name
        for suffix in ("_bucket", "_count", "_sum"):
            family = family.removesuffix(suffix)
        assert typed.get(name) in ("gauge", "counter") or typed[family] == "histogram"


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("TEXT", "TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc="),
        ("json", 'JSON {"named_metrics":{"num_requests_waiting":0.0,"kv_cache_usage_perc":'),
        ("BIN", None),
    ],
)
def test_orca_comes_with_answers_that_are_not_streamed(wire, clock, form, start):
    headers = {"endpoint-load-metrics-format": form}
    wire.send("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, headers)
    clock.run_until(math.inf)
    report = wire.headers.get("endpoint-load-metrics")
    assert report is None if start is None else report is not None and report.startswith(start)
    wire.send("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": True}, headers)
    assert "endpoint-load-metrics" not in wire.headers


def test_the_switches(wire, endpoint, clock):
    killed: list[float] = []
    endpoint.kill = killed.append
    wire.send("POST", "/emulator", {"pace": 3, "down_s": 1.5})
    assert wire.status == 200 and wire.json["pace"] == 3 and killed == [1.5]
    wire.ask("/v1/completions", prompt="a", max_tokens=2, ignore_eos=True)
    clock.run_until(math.inf)
    assert wire.finished_s == 6.0
    wire.send("POST", "/emulator", {"pase": 3})
    assert wire.status == 400 and "pase" in wire.json["error"]["message"]
    wire.send("POST", "/emulator", {"pace": 0})
    assert wire.status == 400


def test_a_server_that_hangs_answers_when_it_is_woken(wire, endpoint, clock):
    wire.ask("/v1/completions", prompt="a", max_tokens=3, ignore_eos=True, stream=True)
    clock.run_until(1.5)
    endpoint.hanging = True
    health, gone = Wire(endpoint, clock), Wire(endpoint, clock)
    health.send("GET", "/health")
    gone.ask("/v1/completions", prompt="a", max_tokens=3)
    clock.run_until(9.0)
    gone.leave()
    assert health.status == 0 and len(wire.pieces) == 1
    endpoint.hanging = False
    clock.run_until(math.inf)
    assert health.status == 200 and wire.events[-1] == "[DONE]"
    assert endpoint.engine.tally.finished == {"stop": 0, "length": 1, "abort": 0}
