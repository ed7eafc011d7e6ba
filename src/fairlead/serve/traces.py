"""OpenTelemetry: a span for each request, under the client's `traceparent`, sent to a collector by OTLP.

Without the `traces` section of the settings nothing of this is imported. A span is made when a request's head
has come and ends with the request; a thread of the SDK's sends them in batches, and drops what a slow
collector does not take.
"""

import logging
from time import monotonic
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError
from fairlead.serve.logs import EventLog
from fairlead.serve.messages import CONTEXT_HEADERS, Headers
from fairlead.serve.settings import Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

    from fairlead.serve.backend import Backend
    from fairlead.serve.exchange import Exchange
    from fairlead.serve.request import Request

EXPORT_TIMEOUT_S = 2
"""For one batch of 512 spans. At most 2,048 wait: a dead collector delays the end by about four times this.
"""


class Tracing:
    """Makes and ends the spans."""

    def __init__(self, settings: Traces, processor: "SpanProcessor | None" = None) -> None:
        """Spans go to `processor`, or by OTLP over HTTP to the collector in the settings.

        Raises:
            FairleadError: if the `otel` extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise FairleadError(
                f"traces need {error.name}, which is not installed: pip install 'fairlead[otel]'"
            ) from None
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.share)),
            resource=Resource.create({"service.name": settings.service}),
            shutdown_on_exit=False,  # the server closes it
        )
        if processor is None:
            exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_TIMEOUT_S)
            processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._complaints = _Complaints(EventLog())
        logging.getLogger("opentelemetry").addHandler(self._complaints)
        self._tracer = self._provider.get_tracer("fairlead.serve")
        self._propagator = TraceContextTextMapPropagator()
        self._in_context = set_span_in_context
        self._server = SpanKind.SERVER
        self._error = Status(StatusCode.ERROR)

    def begin(self, request: "Request") -> "Span":
        """The span of a request whose head has come."""
        carrier: dict[str, str] = {}
        for lower, _, value in request.headers:
            if lower in CONTEXT_HEADERS:
                name, text = lower.decode(), value.decode("latin-1")
                carrier[name] = f"{carrier[name]},{text}" if name in carrier else text
        return self._tracer.start_span(
            request.method.decode("latin-1"),  # renamed at the end: a path may be anything
            context=self._propagator.extract(carrier, context={}),  # type: ignore[arg-type]
            kind=self._server,
        )

    def headers(self, span: "Span") -> Headers:
        """What tells a backend that its work belongs to `span`."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=self._in_context(span))
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]
        return [(name, name, value) for name, value in pairs]

    def end(self, span: "Span", exchange: "Exchange", backend: "Backend | None", path: str) -> None:
        """Write what became of the request into its span and end it; `path` is a known one or `other`."""
        if span.is_recording():
            request, facts, usage = exchange.request, exchange.facts, exchange.usage
            span.update_name(f"{request.method.decode('latin-1')} {path}")
            attributes: dict[str, str | int | float] = {
                "http.request.method": request.method.decode("latin-1"),
                "http.response.status_code": exchange.status,
                "url.path": request.path.decode("latin-1"),
                "client.address": request.connection.peer.decode("latin-1"),
                "fairlead.request_id": exchange.request_id.decode("latin-1"),
                "fairlead.outcome": exchange.outcome,
                "fairlead.attempts": exchange.attempts,
                "fairlead.retries": len(exchange.tried),
                "fairlead.e2e_s": monotonic() - request.arrived,
            }
            if exchange.by:
                attributes["fairlead.policy"] = exchange.by
                attributes["fairlead.decision_s"] = exchange.decision_s
                attributes["fairlead.before_decision_s"] = exchange.decided - request.arrived
                attributes["fairlead.prompt_tokens_estimate"] = exchange.prompt_estimate
            if exchange.tried:
                attributes["fairlead.failed_backends"] = ",".join(each.name for each in exchange.tried)
            if exchange.shadow:
                attributes["fairlead.shadow_backend"] = exchange.shadow
            if backend is not None:
                attributes["fairlead.backend"] = backend.name
                attributes["server.address"] = backend.authority.decode("latin-1")
            if exchange.ttft:
                attributes["fairlead.ttft_s"] = exchange.ttft
            if facts is not None and facts.model:
                attributes["gen_ai.request.model"] = facts.model
            if usage is not None and usage.prompt_tokens >= 0:
                attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            if exchange.output_tokens:
                attributes["gen_ai.usage.output_tokens"] = exchange.output_tokens
            span.set_attributes(attributes)
            if exchange.status >= 500 or exchange.outcome not in ("ok", "client_left"):
                span.set_status(self._error)
        span.end()

    def close(self) -> None:
        """Send what is left; takes as long as the collector does, see `EXPORT_TIMEOUT_S`."""
        self._provider.shutdown()
        logging.getLogger("opentelemetry").removeHandler(self._complaints)


class _Complaints(logging.Handler):
    """What the SDK logs (a collector that cannot be reached) becomes an event like all others."""

    def __init__(self, events: EventLog) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events("traces", message=record.getMessage())
