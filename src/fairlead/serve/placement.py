"""The placing of one request: what the gateway knows becomes a view, and the policy chooses by it.

What later choices are to know is kept here as well: where it was sent, and what it left behind there.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fairlead.serve.backend import Backend
from fairlead.serve.decisions import Decider
from fairlead.serve.facts import Facts, session_number
from fairlead.serve.homes import NOWHERE, Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.prefixes import CHUNK_BYTES, NO_KEYS, Prefixes, answer_chunks, chunk_keys
from fairlead.serve.tokens import PromptEstimate
from fairlead.view import schema

_MOST_SETS = 1000
"""Sets of backends whose rows are kept at hand."""


class Placed(Protocol):
    """A request, as far as its placing goes: what it is, and what is decided about it."""

    facts: Facts | None
    decided: float
    """When a backend was chosen (s, monotonic)."""
    decision_s: float
    """How long the choice took."""
    by: str
    """The router that chose."""
    shadow: str
    """The backend that the shadow would have chosen."""
    prompt_estimate: int
    """Tokens of its prompt."""
    expected_hit: float
    """Of these, what the chosen backend may have cached."""
    session: int
    """The number of its conversation; 0: it has none."""
    keys: npt.NDArray[np.uint64] | None
    """Of its prompt's chunks, from the choice of a backend until nothing of it is there any more."""
    logged: list[object] | None
    """The view at the decision, for the decision log."""


class Placement:
    """Everything that a decision is made from."""

    def __init__(
        self, ledger: Ledger, prefixes: Prefixes, homes: Homes, decider: Decider, prompts: PromptEstimate
    ) -> None:
        """They are shared with the gateway, which keeps them up to date."""
        self._ledger = ledger
        self._homes = homes
        self._prefixes = prefixes
        self._decider = decider
        self._prompts = prompts
        self._rows: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}

    def choose(
        self, request: Placed, found: list[Backend], now: float, *, stale_after: float, keep_view: bool
    ) -> Backend:
        """One of `found` for `request`, which is told what has been decided about it.

        Args:
            request: whose body has been read.
            found: backends that may take it.
            now: s, monotonic.
            stale_after: readings older than so many seconds are left out of the view.
            keep_view: whether the view will be logged.

        Raises:
            PolicyFailed: if the policy gave no usable decision, and nothing stands in for it.
        """
        facts = request.facts
        assert facts is not None
        tokens = facts.prompt_tokens
        if tokens < 0:
            tokens = self._prompts.tokens(facts.model, facts.prompt_bytes)
        request.decided, request.prompt_estimate = now, tokens
        rows = self._row_numbers(found)
        view, replicas, columns = self._decider.room(len(found))
        columns[schema.TTFT_TAIL_S] = self._ledger.write_view(rows, now, stale_after, replicas)
        columns[schema.PROMPT_TOKENS] = tokens
        columns[schema.MAX_TOKENS] = facts.max_tokens
        columns[schema.EXPECTED_OUTPUT_TOKENS] = self._ledger.expected_output()
        columns[schema.SESSION] = request.session = session_number(facts.session)
        home = self._homes.of(request.session)
        if home != NOWHERE:
            replicas[rows == home, schema.SESSION_HOME] = 1.0
        keys = chunk_keys(facts.prompt) if len(facts.prompt) >= CHUNK_BYTES else NO_KEYS
        if keys is not NO_KEYS:
            tokens_per_chunk = CHUNK_BYTES * tokens / max(1, facts.prompt_bytes)
            self._prefixes.hits(rows, keys, request.session, tokens_per_chunk, tokens - 1.0, replicas)
        choice = self._decider.choose(view, now)
        request.by, request.decision_s = choice.by, choice.seconds
        if self._decider.shadow is not None:
            shadow = self._decider.compare(view)
            self._decider.shadow_agreed += shadow == choice.row
            request.shadow = found[shadow].name if 0 <= shadow < len(found) else ""
        if keep_view:
            names = [backend.name for backend in found]
            request.logged = [names, replicas.tolist(), columns.tolist(), round(choice.seconds, 7)]
        chosen = found[choice.row]
        request.expected_hit = 0.0
        if keys is not NO_KEYS:
            request.expected_hit = float(replicas[choice.row, schema.EXPECTED_PREFIX_HIT_TOKENS])
            request.keys = keys
        return chosen

    def sent(self, request: Placed, backend: Backend) -> None:
        """It has been sent to `backend`, which may keep its prompt cached: its conversation is there now."""
        if request.keys is not None:
            if backend.reading is None or backend.reading.caches_prefixes:
                self._prefixes.sent(backend.row, request.keys, request.session)
            else:
                request.keys = None
        self._homes.sent(request.session, backend.row)

    def let_go(self, request: Placed, backend: Backend, answer: int) -> None:
        """It is not at `backend` any more, where `answer` tokens were generated for it."""
        if request.keys is not None:
            assert request.facts is not None
            chunks = answer_chunks(request.facts, request.prompt_estimate, answer)
            self._prefixes.answered(backend.row, request.keys, request.session, chunks)
            request.keys = None

    def _row_numbers(self, found: list[Backend]) -> npt.NDArray[np.int64]:
        key = tuple([backend.row for backend in found])
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) > _MOST_SETS:
                self._rows.clear()
            rows = self._rows[key] = np.array(key, np.int64)
        return rows
