"""The gateway's own `/metrics`: Prometheus text, written directly (counting must cost next to nothing)."""

from collections.abc import Sized
from time import monotonic
from typing import Protocol

from fairlead.serve.backend import Histogram
from fairlead.serve.backends import Backends
from fairlead.serve.decisions import Decider
from fairlead.serve.ledger import Ledger
from fairlead.serve.logs import JsonLines
from fairlead.serve.prompt_tokens import PromptCounter
from fairlead.serve.queue import Queue
from fairlead.view import schema
from fairlead.view.pace import common_pace

_STATES = ("up", "unhealthy", "ejected", "draining")


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Counted(Protocol):
    """What of a gateway is reported."""

    @property
    def connections(self) -> Sized: ...  # noqa: D102

    backends: Backends
    queue: Queue
    decider: Decider
    counter: PromptCounter | None
    requests_log: JsonLines | None
    decisions_log: JsonLines | None
    ledger: Ledger
    requests: dict[tuple[str, int], int]


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, text: str) -> None:
        self.lines += [f"# HELP fairlead_{name} {text}", f"# TYPE fairlead_{name} {kind}"]

    def sample(self, name: str, value: float, **labels: str) -> None:
        inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        # To the last digit: a counter that is rounded stands still, then jumps.
        number = str(int(value)) if value == int(value) else repr(float(value))
        self.lines.append(f"fairlead_{name}{{{inner}}} {number}" if inner else f"fairlead_{name} {number}")

    def histogram(self, name: str, histogram: Histogram, **labels: str) -> None:
        total = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += count
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            self.sample(f"{name}_bucket", total, **labels, le=le)
        self.sample(f"{name}_sum", histogram.total, **labels)
        self.sample(f"{name}_count", total, **labels)


def exposition(gateway: Counted) -> bytes:
    """All metrics of `gateway`, in Prometheus text format 0.0.4."""
    out = _Writer()
    backends, decider = gateway.backends, gateway.decider
    out.family("requests_total", "counter", "Requests that ended, by path and status (499: the client left).")
    for (path, status), count in gateway.requests.items():
        out.sample("requests_total", count, path=path, status=str(status))
    out.family("connections", "gauge", "Client connections.")
    out.sample("connections", len(gateway.connections))
    out.family("queue_requests", "gauge", "Requests that wait for a backend.")
    out.sample("queue_requests", len(gateway.queue))
    out.family("queue_refused_total", "counter", "Requests refused because the queue was full or too slow.")
    out.sample("queue_refused_total", gateway.queue.refused)
    out.family("log_lines_lost_total", "counter", "Lines of a log that could not be written.")
    for kind, log in (("requests", gateway.requests_log), ("decisions", gateway.decisions_log)):
        if log is not None:
            out.sample("log_lines_lost_total", log.lost, log=kind)
    out.family("decisions_total", "counter", "Decisions, by the router that made them.")
    for name, count in decider.decisions.items():
        out.sample("decisions_total", count, router=name)
    out.family("policy_errors_total", "counter", "Decisions of the policy that failed or came too late.")
    for reason in ("error", "deadline"):
        out.sample("policy_errors_total", decider.errors.get(reason, 0), reason=reason)
    if gateway.counter is not None:
        text = "Prompts that were to be counted, by what became of it (all but the first two: estimated)."
        out.family("prompts_total", "counter", text)
        for outcome, count in gateway.counter.outcomes.items():
            out.sample("prompts_total", count, outcome=outcome)
    out.family("decision_seconds", "histogram", "Time from a view to a choice.")
    out.histogram("decision_seconds", decider.seconds)
    out.family(
        "shadow_decisions_total", "counter", "Decisions that the shadow router made too, by agreement."
    )
    out.sample("shadow_decisions_total", decider.shadow_agreed, agrees="yes")
    other = decider.shadow_decisions - decider.shadow_agreed - decider.shadow_errors
    out.sample("shadow_decisions_total", other, agrees="no")
    out.sample("shadow_decisions_total", decider.shadow_errors, agrees="failed")

    out.family("backend_state", "gauge", "1 for the state that a backend is in.")
    for backend in backends:
        for state in _STATES:
            out.sample("backend_state", float(backend.state == state), backend=backend.name, state=state)
    gauges = (
        ("in_flight", "Requests in flight.", schema.IN_FLIGHT),
        ("awaiting_first_token", "Requests in flight without a first token.", schema.AWAITING_FIRST_TOKEN),
        ("pending_prefill_tokens", "Prompt tokens of those.", schema.PENDING_PREFILL_TOKENS),
        ("context_tokens", "Prompt and streamed tokens of the others.", schema.CONTEXT_TOKENS),
    )
    for name, text, column in gauges:
        out.family(f"backend_{name}", "gauge", text)
        for backend in backends:
            out.sample(f"backend_{name}", gateway.ledger.rows[backend.row, column], backend=backend.name)
    out.family("backend_pace", "gauge", "How many times as long as declared its last iterations took.")
    for backend in backends:
        out.sample("backend_pace", common_pace(*gateway.ledger.pace_sums[backend.row]), backend=backend.name)
    out.family("backend_view_age_seconds", "gauge", "Age of the last good reading of a backend's metrics.")
    for backend in backends:
        age = monotonic() - gateway.ledger.scraped_at[backend.row]
        if age < float("inf"):
            out.sample("backend_view_age_seconds", age, backend=backend.name)
    counters = (
        ("requests_total", "Requests sent, each attempt counted.", "requests"),
        ("cancelled_total", "Requests whose client left.", "cancelled"),
        ("retries_total", "Attempts given up for another.", "retries"),
        ("ejections_total", "Times that failed requests took it out.", "ejections"),
        ("scrape_errors_total", "Readings of its metrics that failed or were impossible.", "scrape_errors"),
        ("prompt_tokens_total", "Prompt tokens, as estimated when routed.", "prompt_tokens"),
        ("output_tokens_total", "Output tokens.", "output_tokens"),
    )
    for name, text, attribute in counters:
        out.family(f"backend_{name}", "counter", text)
        for backend in backends:
            out.sample(f"backend_{name}", getattr(backend, attribute), backend=backend.name)
    out.family("backend_answers_total", "counter", "Answers by status.")
    for backend in backends:
        for status, count in backend.answers.items():
            out.sample("backend_answers_total", count, backend=backend.name, status=str(status))
    out.family("backend_errors_total", "counter", "Failed requests by reason.")
    for backend in backends:
        for reason, count in backend.errors.items():
            out.sample("backend_errors_total", count, backend=backend.name, reason=reason)
    for name, text in (
        ("ttft", "Time to the first token of streamed answers."),
        ("itl", "Time between tokens of streamed answers."),
        ("e2e", "Time to the end of answers."),
    ):
        out.family(f"backend_{name}_seconds", "histogram", text)
        for backend in backends:
            out.histogram(f"backend_{name}_seconds", getattr(backend, name), backend=backend.name)
    out.lines.append("")
    return "\n".join(out.lines).encode()
