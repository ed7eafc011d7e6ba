"""Every setting of the gateway, documented in place; from a YAML file, from the command line, or both.

Times are in seconds, sizes in bytes. Unknown keys are refused, with the one that was probably meant.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from fairlead.policy.packaged import GENERALIST
from fairlead.section import Section, first_problem, invalid
from fairlead.view.preference import DEFAULT_FAVOR

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Dial = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Positive
Count = Annotated[int, Field(ge=1)]


DECLARED = ("speed", "prefill_tokens_per_s", "decode_iteration_s")
"""Settings of a backend that are columns of the view and that no server tells: declared, or measured."""


class BackendSettings(Section):
    """One vLLM server (or anything that speaks its HTTP)."""

    url: str
    """Where it listens: `http://host:port`, or `https://`; a path becomes a prefix of every request's."""
    name: str = ""
    """How logs, metrics and the admin API call it; `host:port` if not given."""
    models: tuple[str, ...] = ()
    """The models that it serves; asked of its `/v1/models` if not given."""
    api_key: str = ""
    """Sent to it as `Authorization: Bearer ...`; `$NAME` reads the environment variable NAME."""
    ca: Path | None = None
    """Certificates (PEM) that its own must be signed by, for `https`; those of the system if not given."""
    max_in_flight: Count | None = None
    """Requests that it may have at once; more wait at the gateway."""
    speed: Positive = 1.0
    """Declared speed relative to the fastest backend."""
    prefill_tokens_per_s: Positive = 10_000.0
    """Declared prefill rate."""
    decode_iteration_s: Seconds = 0.01
    """Declared time of a decode iteration with a batch of one."""
    kv_capacity_tokens: Count | None = None
    """Size of the KV cache; read from `vllm:cache_config_info` if not given (100,000 until it is known)."""
    max_num_seqs: Count = 256
    """Largest running batch."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise invalid(f"{url!r} is not the address of a server, for example http://127.0.0.1:8001")
        if parts.query or parts.fragment or parts.username:
            raise invalid(f"{url!r}: give scheme, host, port and at most a path")
        return url.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _read_key(cls, key: str) -> str:
        return from_environment(key)

    @property
    def label(self) -> str:
        """Its name, or `host:port`."""
        return self.name or urlsplit(self.url).netloc

    @property
    def assumed(self) -> list[str]:
        """What no server tells, `least_work` and policies go by, and is not declared."""
        return [name for name in DECLARED if name not in self.model_fields_set]


def from_environment(value: str) -> str:
    """`value`, or the content of the environment variable that `$NAME` names."""
    if not value.startswith("$"):
        return value
    found = os.environ.get(value[1:])
    if not found:
        raise invalid(f"the environment variable {value[1:]} is not set")
    return found


class Discovery(Section):
    """Backends found by name, besides those that are listed: every address that the name has is one.

    A headless Kubernetes service, for example, has those of its ready pods.
    """

    host: str
    """The name to look up."""
    port: int = Field(8000, ge=1, le=65535)
    """Where each of them listens."""
    interval: Seconds = 5.0
    """Between two look-ups."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Further settings of each of them, as under `backends`: `api_key`, `max_in_flight`, ..."""

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: dict[str, Any]) -> dict[str, Any]:
        for key in ("url", "name"):
            if key in template:
                raise invalid(f"{key} is that of each address; leave it out")
        BackendSettings.model_validate({"url": "http://127.0.0.1", **template})
        return template

    def backend_at(self, host: str) -> BackendSettings:
        """The settings of the backend at an address."""
        return BackendSettings.model_validate({"url": f"http://{host}:{self.port}", **self.template})


class Limits(Section):
    """How much a client may ask for."""

    max_header_bytes: Count = 32_768
    """Request line and headers together; more is answered with 431."""
    max_headers: Count = 100
    """Headers of a request; more is answered with 431."""
    max_body_bytes: Count = 64 * 1024 * 1024
    """A larger request body is answered with 413."""
    inspect_bytes: Count = 1024 * 1024
    """Bodies up to this size are read whole before a backend is chosen, and can be sent again to another. Of
    larger ones only the size is used, and they are streamed."""
    max_connections: Count = 20_000
    """Client connections at once; more are answered with 503 and closed. Each needs two open files (its own
    and that to a backend): where the process may not have so many, fewer are served, as an event says."""
    max_pipelined: Count = 16
    """Requests that a client may send ahead of the answers on one connection."""


class Timeouts(Section):
    """How long the gateway waits for what."""

    header: Seconds = 10.0
    """For a complete request head, from its first byte."""
    body: Seconds = 30.0
    """For a request body, plus a second for every 1,000 bytes that have come."""
    keep_alive: Seconds = 75.0
    """For the next request on a connection."""
    connect: Seconds = 2.0
    """For a connection to a backend."""
    first_byte: Seconds = 600.0
    """For the first byte of a backend's answer (an answer that is not streamed comes at its very end)."""
    idle: Seconds = 300.0
    """Between two pieces of an answer, and for a client that does not read."""
    drain: Seconds = 60.0
    """For the requests in flight at shutdown; what is left then is cut off."""
    pool_idle: Seconds = 4.0
    """Unused connections to backends are closed after this; vLLM closes them after 5."""


class Queue(Section):
    """Requests that wait at the gateway because no backend can take them."""

    max_requests: Annotated[int, Field(ge=0)] = 1000
    """More are refused with 503 and `Retry-After`."""
    timeout: Seconds = 10.0
    """A request that has waited for so long is refused likewise."""
    retry_after: Count = 1
    """Seconds that `Retry-After` tells."""


class Health(Section):
    """Finding out which backends can be used."""

    path: str = "/health"
    """Asked of each backend; 200 means healthy."""
    interval: Seconds = 1.0
    """Between two checks."""
    timeout: Seconds = 5.0
    """A check that takes longer has failed."""
    fail_after: Count = 3
    """So many failed checks in a row take a backend out; one good one ends it."""
    eject_after: Count = 3
    """So many failed requests in a row (connection refused or reset, timeouts) take a backend out."""
    eject_after_errors: Annotated[int, Field(ge=0)] = 5
    """So many answers in a row with 500 or 504 take a backend out as well, if another one is up: what fails
    at once looks idle, and would be sent everything. 0: never."""
    eject_s: Seconds = 2.0
    """For how long; doubled each time that it happens again."""
    max_eject_s: Seconds = 60.0
    """At most."""
    slow_return_s: NotNegative = 5.0
    """A backend that returns is offered a share of the decisions that grows from 0 to 1 in this time."""


class Retries(Section):
    """Sending a request to another backend, before the first byte of an answer has come."""

    attempts: Count = 3
    """Backends tried for one request, the first included. Requests that may have effects on a backend are
    only retried when no connection could be made."""
    statuses: tuple[int, ...] = (502, 503)
    """Answers that count as a failure of the backend; after the last attempt they are passed on."""


class Scrape(Section):
    """Reading the backends' metrics."""

    path: str = "/metrics"
    """Prometheus text."""
    interval: Seconds | None = 1.0
    """Between two readings; null: never."""
    timeout: Seconds = 5.0
    """A reading that takes longer has failed."""
    stale_after: Seconds = 10.0
    """Older readings are not used; the ledger stands in for them."""
    orca: bool = True
    """Ask for load reports in the headers of answers (`endpoint-load-metrics`), which are fresher."""


class Policy(Section):
    """Who decides."""

    router: str = GENERALIST
    """A heuristic by name, a policy that ships with Fairlead, or an exported one: a file that ends in
    `.onnx`."""
    favor: Dial = DEFAULT_FAVOR
    """What a trained policy favors: from end-to-end latency (0) to first tokens, above all late ones (1)."""
    on_policy_error: str = "lor"
    """When a policy fails or is too slow: `fail` refuses the request (500), a heuristic's name lets that
    decide."""
    deadline: Seconds = 0.05
    """A decision that takes longer counts as failed."""
    rest: Seconds = 1.0
    """After a failed decision the fallback decides for so long before the policy is asked again."""
    shadow: str | None = None
    """Another router that decides too; its choices are counted and logged, not used. null: none."""
    shadow_favor: Dial = DEFAULT_FAVOR
    """Its dial."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of what is random in heuristics: ties, `random`, `p2c`."""


class Tokens(Section):
    """How the length of a prompt is known before a backend tells."""

    prompts: Literal["estimate", "tokenizer", "backend"] = "estimate"
    """`estimate`: from its size, by a ratio learned from `usage`. `tokenizer`: counted here, by the files
    under `tokenizers`. `backend`: a backend is asked first (`/tokenize` of vLLM): exact, one round trip more.
    What is not counted in time, or fails, is estimated; `/metrics` counts that."""
    tokenizers: dict[str, Path] = Field(default_factory=dict)
    """Model -> its `tokenizer.json`; `"*"` is for all others. Needs the `tokenizers` extra."""
    count_within: Seconds = 0.05
    """A request waits for its prompt to be counted for so long at most."""
    bytes_per_token: Positive = 4.0
    """The first guess for every model; it follows `usage` in the answers."""
    ask_usage: bool = False
    """Ask for the `usage` of streamed answers whose client did not, and keep it from that client: so tokens
    are counted right where a backend merges several into one event. Requests are then not passed on byte for
    byte, and backends must know `stream_options`."""

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if (self.prompts == "tokenizer") != bool(self.tokenizers):
            raise invalid(
                "prompts: tokenizer and tokenizers (model: file) belong together: give both or none"
            )
        return self


class Prefixes(Section):
    """What is remembered of the prompts that each backend was sent, and of their answers."""

    chunks: Annotated[int, Field(ge=0, le=2**20)] | None = None
    """Chunks of 256 bytes per backend, some 30 bytes of memory each; 0: nothing is remembered. By default
    what its KV cache holds, at most 65,536; 16,384 where nobody says how much that is."""


class Tls(Section):
    """Certificate files for HTTPS towards the clients."""

    certificate: Path
    """PEM, the chain included."""
    key: Path
    """PEM."""


class Logs(Section):
    """What is written where."""

    requests: bool = True
    """One JSON line on stdout for every request."""
    decisions: Path | None = None
    """JSON lines, one for each routed request: the view, the choice and the outcome. `fairlead replay-log`
    reads them."""
    decisions_max_bytes: Count = 1024**3
    """At this size the file is renamed to `NAME.1` (replacing an older one) and begun again."""


class Traces(Section):
    """OpenTelemetry: a span for each request. Needs the `otel` extra; taken up at the start."""

    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    """Where a collector takes OTLP over HTTP."""
    service: str = "fairlead"
    """What the spans name as their `service.name`."""
    share: Dial = 1.0
    """Of the requests that come without a `traceparent`, so many are traced; for others its flag decides."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise invalid(f"{endpoint!r} is not an address such as http://127.0.0.1:4318/v1/traces")
        return endpoint


class Admin(Section):
    """The admin API and the dashboard, on a port of their own."""

    host: str = "127.0.0.1"
    """Where it listens."""
    port: Port = 0
    """0: any free port, told at start."""
    token: str
    """Required as `Authorization: Bearer ...`; `$NAME` reads the environment variable NAME."""

    @field_validator("token")
    @classmethod
    def _read_token(cls, token: str) -> str:
        token = from_environment(token)
        if len(token) < 8:
            raise invalid("a token has at least 8 characters")
        return token


class GatewaySettings(Section):
    """The whole configuration of `fairlead serve`."""

    host: str = "127.0.0.1"
    """Where it listens for clients."""
    port: Port = 8000
    """0: any free port, told at start."""
    backends: tuple[BackendSettings, ...] = ()
    """At least one, unless they are discovered or the admin API will add them."""
    discovery: Discovery | None = None
    gateways: Count = 1
    """How many gateways share the backends, this one included: each counts on its part of their KV caches."""
    api_keys: tuple[str, ...] = ()
    """Clients must send one of them as `Authorization: Bearer ...`; none: open to all. `$NAME` reads the
    environment variable NAME. They are not passed on."""
    tls: Tls | None = None
    """Serve HTTPS instead of HTTP."""
    policy: Policy = Policy()
    tokens: Tokens = Tokens()
    prefixes: Prefixes = Prefixes()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    queue: Queue = Queue()
    health: Health = Health()
    retries: Retries = Retries()
    scrape: Scrape = Scrape()
    logs: Logs = Logs()
    traces: Traces | None = None
    admin: Admin | None = None

    @field_validator("api_keys")
    @classmethod
    def _read_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(from_environment(key) for key in keys)
        if not all(key.strip() for key in found):
            raise invalid("a key is empty: whoever sends none would have it")
        return found

    @model_validator(mode="after")
    def _check_backends(self) -> Self:
        if not self.backends and self.discovery is None and self.admin is None:
            raise invalid(
                "no backends: name at least one, or a discovery section that finds them, or an admin section "
                "so that some can be added"
            )
        labels = [backend.label for backend in self.backends]
        for label in labels:
            if labels.count(label) > 1:
                raise invalid(f"two backends are called {label}: give each a name of its own")
        return self


def parse_settings(content: dict[str, Any], where: str) -> GatewaySettings:
    """Validated settings; `where` names their origin in errors.

    Raises:
        FairleadError: with the first problem, in one line.
    """
    try:
        return GatewaySettings.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, where) from None
