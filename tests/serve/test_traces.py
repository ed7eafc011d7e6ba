"""OpenTelemetry: one span per request, in the client's trace, with the decision and what came of it."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip(
    "opentelemetry.sdk", reason="the otel extra is not installed: pip install 'fairlead[otel]'"
)

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fairlead.errors import FairleadError
from fairlead.serve.settings import Traces
from fairlead.serve.traces import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


def record(world, **settings) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    world.gateway.traces = Tracing(Traces(**settings), SimpleSpanProcessor(exporter))
    return exporter


def one(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    assert span.context is not None and span.attributes is not None
    return span


def attributes(span: ReadableSpan) -> dict[str, object]:
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_span_tells_the_decision_and_what_came_of_it(play, prompt):
    async def scene(world):
        exporter = record(world)
        headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "x-request-id": "mine"}
        await world.ask(body=prompt | {"stream": True}, headers=headers)
        await world.until(lambda: len(exporter.get_finished_spans()) == 1)
        span = one(exporter)
        assert span.name == "POST /v1/completions" and span.kind is SpanKind.SERVER
        assert span.status.status_code is not StatusCode.ERROR
        assert span.context is not None and f"{span.context.trace_id:032x}" == TRACE
        assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
        found = attributes(span)
        expected = {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "url.path": "/v1/completions",
            "fairlead.request_id": "mine",
            "fairlead.outcome": "ok",
            "fairlead.policy": "least_work",
            "fairlead.attempts": 1,
            "fairlead.retries": 0,
            "gen_ai.request.model": "m",
            "gen_ai.usage.output_tokens": 4,
        }
        assert {key: found[key] for key in expected} == expected
        assert found["fairlead.backend"] in ("b0", "b1")
        for key in ("ttft_s", "e2e_s", "decision_s"):
            seconds = found[f"fairlead.{key}"]
            assert isinstance(seconds, float) and seconds > 0.0
        # The backend hears of the gateway's span, in the client's trace, once.
        (asked,) = [each for backend in world.backends for each in backend.requests]
        assert asked[2]["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
        assert asked[2]["tracestate"] == "vendor=1"

    play(scene)


def test_retries_and_errors(play, prompt):
    async def reset(backend, client, asked):
        client.reset()
        return False

    async def scene(world):
        exporter = record(world)
        world.backends[0].behave = reset
        for _ in range(2):
            assert (await world.ask(body=prompt)).status == 200
        world.backends[1].behave = reset
        assert (await world.ask(body=prompt)).status == 502
        await world.until(lambda: len(exporter.get_finished_spans()) == 3)
        spans = exporter.get_finished_spans()
        retried = [attributes(span) for span in spans if attributes(span).get("fairlead.retries") == 1]
        assert {
            (found["fairlead.failed_backends"], found.get("fairlead.backend"))
            for found in retried
            if found["http.response.status_code"] == 200
        } == {("b0", "b1")}
        assert spans[2].status.status_code is StatusCode.ERROR
        assert attributes(spans[2])["http.response.status_code"] == 502
        assert len({span.context.trace_id for span in spans if span.context is not None}) == 3

    play(scene, policy={"router": "round_robin"}, health={"eject_after": 100})


def test_the_clients_flag_is_obeyed_and_a_broken_one_ignored(play, prompt):
    async def scene(world):
        exporter = record(world, share=0.0)
        await world.ask(body=prompt, headers={"traceparent": SAMPLED[:-1] + "0"})
        await world.ask(body=prompt)
        await world.ask(body=prompt, headers={"traceparent": "nonsense"})
        asked = [each[2]["traceparent"] for backend in world.backends for each in backend.requests]
        assert len(asked) == 3 and all(int(each[-2:], 16) & 1 == 0 for each in asked)  # not sampled
        assert sum(TRACE in each for each in asked) == 1
        assert exporter.get_finished_spans() == ()

    play(scene)


def test_off_the_clients_headers_pass_through(play, prompt):
    async def scene(world):
        await world.ask(body=prompt, headers={"traceparent": SAMPLED})
        (asked,) = [each for backend in world.backends for each in backend.requests]
        assert asked[2]["traceparent"] == SAMPLED

    play(scene)


def test_off_nothing_of_it_is_imported():
    code = "import sys, fairlead.serve.server; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spans_reach_a_collector_at_the_latest_at_the_end(play, prompt):
    came: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.path.encode() + self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    async def scene(world):
        world.gateway.traces = Tracing(Traces(endpoint=endpoint, service="mine"))
        await world.ask(body=prompt, headers={"traceparent": SAMPLED})

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
        thread.start()
        try:
            play(scene)
        finally:
            collector.shutdown()
            thread.join()
    assert came and came[0].startswith(b"/v1/traces")
    assert bytes.fromhex(TRACE) in came[0] and b"mine" in came[0] and b"least_work" in came[0]


def test_without_the_extra_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(FairleadError, match=r"pip install 'fairlead\[otel\]'"):
        Tracing(Traces())


def test_settings():
    with pytest.raises(ValueError, match="is not an address"):
        Traces(endpoint="collector:4317")
