"""What the logs say of a request that is over."""

from time import monotonic

from fairlead.serve.backend import Backend
from fairlead.serve.exchange import Exchange
from fairlead.serve.facts import session_number
from fairlead.serve.logs import timestamp
from fairlead.view import schema


def request_record(exchange: Exchange, backend: Backend | None) -> dict[str, object]:
    """A line of the request log; `backend` is where the request was last."""
    request, facts = exchange.request, exchange.facts
    return {
        "time": timestamp(),
        "id": exchange.request_id.decode("latin-1"),
        "client": request.connection.peer.decode("latin-1"),
        "method": request.method.decode("latin-1"),
        "path": request.path.decode("latin-1"),
        "model": facts.model if facts is not None else "",
        "status": exchange.status,
        "outcome": exchange.outcome,
        "backend": backend.name if backend is not None else None,
        "policy": exchange.by,
        "attempts": exchange.attempts,
        "prompt_tokens": exchange.usage.prompt_tokens if exchange.usage else exchange.prompt_estimate,
        "output_tokens": exchange.output_tokens,
        "ttft_s": round(exchange.ttft, 6),
        "e2e_s": round(monotonic() - request.arrived, 6),
    }


def decision_record(exchange: Exchange, backend: Backend | None, started_at: float) -> dict[str, object]:
    """A line of the decision log; `started_at` is when the gateway was started (s, monotonic)."""
    names, replicas, view_request, seconds = exchange.logged or [[], [], [], 0.0]
    facts, usage = exchange.facts, exchange.usage
    assert facts is not None
    return {
        "at_s": round(exchange.request.arrived - started_at, 6),
        "time": timestamp(),
        "id": exchange.request_id.decode("latin-1"),
        "schema": schema.schema_hash(()),
        "model": facts.model,
        "session": session_number(facts.session),
        "backends": names,
        "replicas": replicas,
        "request": view_request,
        "policy": exchange.by,
        "choice": backend.name if backend is not None else None,
        "shadow": exchange.shadow or None,
        "decision_s": seconds,
        "attempts": exchange.attempts,
        "status": exchange.status,
        "outcome": exchange.outcome,
        "prompt_tokens": usage.prompt_tokens if usage and usage.prompt_tokens >= 0 else None,
        "output_tokens": exchange.output_tokens,
        "ttft_s": round(exchange.ttft, 6),
        "e2e_s": round(monotonic() - exchange.request.arrived, 6),
    }
