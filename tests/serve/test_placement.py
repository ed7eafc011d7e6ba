"""Placing without a gateway: what is decided about a request, and what later choices know of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fairlead.serve.backend import Backend, pool_for
from fairlead.serve.decisions import Decider
from fairlead.serve.facts import Facts
from fairlead.serve.homes import NOWHERE, Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.placement import Placement
from fairlead.serve.prefixes import Prefixes
from fairlead.serve.scraping import Reading
from fairlead.serve.settings import BackendSettings, Policy, Timeouts
from fairlead.serve.tokens import PromptEstimate
from fairlead.view import schema

PROMPT = bytes(range(256)) * 8


@dataclass
class Request:
    facts: Facts | None
    decided: float = 0.0
    decision_s: float = 0.0
    by: str = ""
    shadow: str = ""
    prompt_estimate: int = 0
    expected_hit: float = 0.0
    session: int = 0
    keys: npt.NDArray[np.uint64] | None = None
    logged: list[object] | None = None


class Alone:
    """Two backends, and what is known of them."""

    def __init__(self) -> None:
        ledger = Ledger(0.0)
        self.prefixes, self.homes = Prefixes(None), Homes()
        self.placement = Placement(
            ledger, self.prefixes, self.homes, Decider(Policy(router="least_work")), PromptEstimate(4.0)
        )
        self.found = []
        for name in ("a", "b"):
            settings = BackendSettings(url="http://127.0.0.1:9", name=name)
            self.found.append(Backend(settings, ledger, pool_for(settings, Timeouts())))
            self.prefixes.taken_over(self.found[-1].row)

    def place(self, prompt: bytes = PROMPT, session: str = "", *, keep_view: bool = False) -> Request:
        request = Request(Facts("m", True, len(prompt), -1, 4, session, prompt, False))
        self.by = self.placement.choose(request, self.found, 1.0, stale_after=5.0, keep_view=keep_view)
        return request


def test_a_request_is_told_what_was_decided_about_it() -> None:
    alone = Alone()
    request = alone.place(keep_view=True)
    assert alone.by in alone.found
    assert (request.decided, request.by, request.prompt_estimate) == (1.0, "least_work", 512)
    assert request.logged is not None and request.logged[0] == ["a", "b"]
    assert request.keys is not None and len(request.keys) == 8
    assert alone.place(b"short").keys is None


@pytest.mark.parametrize("caches", [True, False, None])
def test_a_prompt_is_expected_where_it_was_sent_unless_nothing_is_cached_there(caches: bool | None) -> None:
    alone = Alone()
    first = alone.found[0]
    if caches is not None:
        first.reading = Reading(0, 0, 0, 0, 0, 0, 0, caches_prefixes=caches)
    request = alone.place(session="who")
    assert alone.homes.of(request.session) == NOWHERE
    alone.placement.sent(request, first)
    assert alone.homes.of(request.session) == first.row
    assert (request.keys is None) is (caches is False)
    alone.placement.let_go(request, first, 100)
    assert request.keys is None and not alone.prefixes._memory.sent_refs.any()
    alone.placement.let_go(request, first, 100)  # there is nothing more to be let go of
    again: Any = alone.place(PROMPT + b"x" * 2000, keep_view=True).logged
    hits = [row[schema.EXPECTED_PREFIX_HIT_TOKENS] > 0.0 for row in again[1]]
    assert hits == [caches is not False, False]
