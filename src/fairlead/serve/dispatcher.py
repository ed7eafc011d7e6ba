"""What an exchange needs of the gateway that it belongs to."""

from typing import TYPE_CHECKING, Protocol, TypeVar

from fairlead.serve.backend import Backend
from fairlead.serve.backends import Backends
from fairlead.serve.ledger import Ledger
from fairlead.serve.messages import Headers
from fairlead.serve.placement import Placement
from fairlead.serve.prompt_tokens import PromptCounter
from fairlead.serve.queue import Queue
from fairlead.serve.settings import Limits, Timeouts
from fairlead.serve.tokens import PromptEstimate

if TYPE_CHECKING:
    from opentelemetry.trace import Span

E = TypeVar("E", contravariant=True)
"""`serve.exchange.Exchange`, which needs this module."""


class Tracer(Protocol):
    """That which traces requests, if anything does."""

    def headers(self, span: "Span") -> Headers:
        """What tells a backend that its work belongs to `span`."""
        ...


class Dispatcher(Protocol[E]):
    """The gateway: it chooses backends, and keeps the books of what became of an exchange."""

    limits: Limits
    timeouts: Timeouts
    backends: Backends
    queue: Queue
    ledger: Ledger
    placement: Placement
    prompts: PromptEstimate
    counter: PromptCounter | None
    """Counts prompts, if that is configured."""
    keyed: bool
    """Whether clients authenticate themselves to the gateway."""
    orca: bool
    """Whether to ask backends for load reports."""
    ask_usage: bool
    """Whether to ask for the `usage` of every stream."""
    attempts: int
    """Backends tried for one request, at most."""
    retry_statuses: frozenset[int]

    @property
    def traces(self) -> Tracer | None:
        """None: requests are not traced."""

    def place(self, exchange: E) -> Backend | None:
        """Choose a backend; None if the exchange has to wait or has been answered."""

    def ended(self, exchange: E, backend: Backend | None) -> None:
        """The exchange is over."""
