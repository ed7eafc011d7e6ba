"""What an exchange needs of the gateway that it belongs to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from fairlead.serve.backend import Backend
from fairlead.serve.ledger import Ledger
from fairlead.serve.messages import Headers
from fairlead.serve.prompt_tokens import PromptCounter
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
    ledger: Ledger
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

    def remember(self, exchange: E, backend: Backend) -> None:
        """It has been sent to `backend`: what later choices are to know of its prompt and conversation."""

    def let_go(self, exchange: E, backend: Backend, answer: int) -> None:
        """It is not at `backend` any more, where `answer` tokens were generated for it."""

    def has_other(self, model: str, excluded: Sequence[Backend]) -> bool:
        """Whether a backend besides `excluded` could take it."""

    def gave_up_waiting(self, exchange: E) -> None:
        """It was in the queue for too long."""

    def failed(self, backend: Backend, reason: str) -> None:
        """An attempt failed by the fault of `backend`."""

    def went_wrong(self, backend: Backend) -> None:
        """`backend` has answered with a server error, which is passed on."""

    def released(self) -> None:
        """A backend may take more."""

    def ended(self, exchange: E, backend: Backend | None) -> None:
        """The exchange is over."""
