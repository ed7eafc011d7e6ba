"""The placing of one request: what the gateway knows becomes a view, and the policy chooses by it."""

import numpy as np
import numpy.typing as npt

from fairlead.serve.backend import Backend
from fairlead.serve.decisions import Decider
from fairlead.serve.exchange import Exchange
from fairlead.serve.facts import session_number
from fairlead.serve.homes import NOWHERE, Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.prefixes import CHUNK_BYTES, NO_KEYS, Prefixes, chunk_keys
from fairlead.serve.tokens import PromptEstimate
from fairlead.view import schema

_MOST_SETS = 1000
"""Sets of backends whose rows are kept at hand."""


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
        self, exchange: Exchange, found: list[Backend], now: float, *, stale_after: float, keep_view: bool
    ) -> Backend:
        """One of `found` for `exchange`, which is told what has been decided about it.

        Args:
            exchange: whose body has been read.
            found: backends that may take it.
            now: s, monotonic.
            stale_after: readings older than so many seconds are left out of the view.
            keep_view: whether the view will be logged.

        Raises:
            PolicyFailed: if the policy gave no usable decision, and nothing stands in for it.
        """
        facts = exchange.facts
        assert facts is not None
        tokens = facts.prompt_tokens
        if tokens < 0:
            tokens = self._prompts.tokens(facts.model, facts.prompt_bytes)
        exchange.decided, exchange.prompt_estimate = now, tokens
        rows = self._row_numbers(found)
        view, replicas, request = self._decider.room(len(found))
        request[schema.TTFT_TAIL_S] = self._ledger.write_view(rows, now, stale_after, replicas)
        request[schema.PROMPT_TOKENS] = tokens
        request[schema.MAX_TOKENS] = facts.max_tokens
        request[schema.EXPECTED_OUTPUT_TOKENS] = self._ledger.expected_output()
        request[schema.SESSION] = exchange.session = session_number(facts.session)
        home = self._homes.of(exchange.session)
        if home != NOWHERE:
            replicas[rows == home, schema.SESSION_HOME] = 1.0
        keys = chunk_keys(facts.prompt) if len(facts.prompt) >= CHUNK_BYTES else NO_KEYS
        if keys is not NO_KEYS:
            tokens_per_chunk = CHUNK_BYTES * tokens / max(1, facts.prompt_bytes)
            self._prefixes.hits(rows, keys, exchange.session, tokens_per_chunk, tokens - 1.0, replicas)
        choice = self._decider.choose(view, now)
        exchange.by, exchange.decision_s = choice.by, choice.seconds
        if self._decider.shadow is not None:
            shadow = self._decider.compare(view)
            self._decider.shadow_agreed += shadow == choice.row
            exchange.shadow = found[shadow].name if 0 <= shadow < len(found) else ""
        if keep_view:
            names = [backend.name for backend in found]
            exchange.logged = [names, replicas.tolist(), request.tolist(), round(choice.seconds, 7)]
        chosen = found[choice.row]
        exchange.expected_hit = 0.0
        if keys is not NO_KEYS:
            exchange.expected_hit = float(replicas[choice.row, schema.EXPECTED_PREFIX_HIT_TOKENS])
            exchange.keys = keys
        return chosen

    def _row_numbers(self, found: list[Backend]) -> npt.NDArray[np.int64]:
        key = tuple([backend.row for backend in found])
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) > _MOST_SETS:
                self._rows.clear()
            rows = self._rows[key] = np.array(key, np.int64)
        return rows
