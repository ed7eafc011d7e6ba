"""Backends that come, go, fail and return: which of them are given requests."""

import asyncio

import pytest

from fairlead.errors import FairleadError
from fairlead.serve.backend import pool_for
from fairlead.serve.backends import Backends
from fairlead.serve.homes import NOWHERE, Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.logs import EventLog
from fairlead.serve.prefixes import Prefixes
from fairlead.serve.settings import BackendSettings, Timeouts, parse_settings
from fairlead.serve.tokens import PromptEstimate


class Alone:
    """Backends without a gateway, and what they say."""

    def __init__(self) -> None:
        self.released = 0
        self.more = lambda: None
        self.homes = Homes()
        self.backends = Backends(
            parse_settings({"backends": [{"url": "http://127.0.0.1:9"}]}, "test"),
            Ledger(0.0),
            Prefixes(None),
            self.homes,
            PromptEstimate(4.0),
            EventLog(),
            self._more,
        )

    def _more(self) -> None:
        self.released += 1
        self.more()

    def add(self, name: str, *models: str) -> None:
        self.backends.add(BackendSettings(url="http://127.0.0.1:9", name=name, models=models))

    def candidates(self, model: str, *excluded: str) -> list[str]:
        without = [self.backends.find(name) for name in excluded]
        return [backend.name for backend in self.backends.candidates(model, without)]


def test_a_name_is_had_once_and_is_to_be_known() -> None:
    alone = Alone()
    alone.add("a")
    with pytest.raises(FairleadError, match="there is a backend called a already"):
        alone.add("a")
    with pytest.raises(FairleadError, match="there is no backend called b; known: a"):
        alone.backends.find("b")
    assert len(alone.backends) == 1


def test_candidates_serve_the_model_and_are_up() -> None:
    alone = Alone()
    for name, models in (("a", ["m"]), ("b", ["m", "n"]), ("c", [])):  # of c it is not known
        alone.add(name, *models)
    assert alone.candidates("m") == alone.candidates("") == ["a", "b", "c"]
    assert alone.candidates("n") == ["b", "c"]
    assert alone.candidates("n", "c") == ["b"]
    a, b, c = alone.backends
    c.draining = True
    # Nobody is known to serve it: any that is up will say so itself.
    assert alone.candidates("unknown") == ["a", "b"]
    b.healthy = False
    assert alone.candidates("n") == []  # somebody is known to serve it
    a.limit = a.in_flight = 3
    assert not alone.backends.has_other("m", ())
    assert alone.candidates("m") == ["a"]
    assert alone.backends.any_free()  # whatever else holds of b and c


def test_one_that_leaves_for_good_is_not_waited_for() -> None:
    alone = Alone()
    alone.add("a", "m")
    alone.add("b", "n")
    a, _ = alone.backends
    a.in_flight = 1
    alone.backends.drain(a, remove=False)
    assert alone.candidates("m") == []  # it comes back
    alone.backends.drain(a, remove=True)
    assert alone.candidates("m") == ["b"]
    alone.backends.keep(a)
    assert alone.candidates("m") == ["a"]


def test_whoever_waits_is_told_of_room() -> None:
    alone = Alone()
    alone.add("a")
    assert alone.released == 1
    (backend,) = alone.backends
    alone.backends.drain(backend, remove=False)
    assert alone.released == 1
    alone.backends.keep(backend)
    assert alone.released == 2
    backend.ejected_until = 5.0
    alone.backends.sweep(4.0)
    assert alone.released == 2
    alone.backends.sweep(6.0)
    assert alone.released == 3 and backend.up


def test_whoever_waits_is_told_who_serves_what() -> None:
    alone = Alone()
    alone.add("a")
    alone.add("declared", "n")
    a, declared = alone.backends
    told = alone.released
    cards = [{"id": "m", "owned_by": "us"}]
    alone.backends.listed(a, cards)
    assert a.models == {"m"} and a.model_cards == cards
    assert alone.released == told + 1
    alone.backends.listed(a, [{"id": "m", "owned_by": "you"}])
    assert alone.released == told + 1  # it serves what it served
    alone.backends.listed(declared, cards)
    assert declared.models == {"n"} and declared.model_cards == cards  # what was declared stands
    assert alone.released == told + 1
    alone.backends.drain(a, remove=True)  # now nobody is known to serve its model
    assert alone.released == told + 2


def test_whoever_waits_is_told_of_several_that_come_and_go_when_all_of_them_have() -> None:
    """Otherwise a request for a model would be sent to whoever is left, since nobody serves it as yet."""
    alone = Alone()
    alone.add("a", "m")
    alone.add("b", "m")
    alone.add("other", "n")
    settings = [
        BackendSettings(url="http://127.0.0.1:9", name=name, models=models)
        for name, models in (("a", ("k",)), ("other", ("n",)), ("c", ("m",)))
    ]
    found: list[list[str]] = []
    alone.more = lambda: found.append(alone.candidates("m"))
    pool = pool_for(settings[0], Timeouts())
    alone.backends.follow(settings, {"a": pool})  # another one, one that goes, one that comes
    assert found == [["c"]]


def test_one_that_is_replaced_gets_a_name_that_is_not_listed_either() -> None:
    alone = Alone()
    alone.add("a", "m")
    (old,) = alone.backends
    old.in_flight = 1
    settings = [BackendSettings(url="http://127.0.0.1:9", name=name) for name in ("a", "a (replaced)")]
    alone.backends.follow(settings, {"a": pool_for(settings[0], Timeouts())})
    assert [each.name for each in alone.backends if not each.leaving] == ["a (replaced)", "a"]
    assert old.leaving and old.name == "a (replaced 1)"


def test_one_that_leaves_finishes_first(capsys) -> None:
    alone = Alone()
    alone.add("a")
    (backend,) = alone.backends
    alone.homes.sent(1, backend.row)
    backend.in_flight = 1
    alone.backends.drain(backend, remove=True)
    alone.backends.sweep(0.0)
    assert list(alone.backends) == [backend]
    backend.in_flight = 0
    alone.backends.sweep(0.0)
    assert not alone.backends
    assert '"event":"backend_removed","backend":"a"' in capsys.readouterr().err
    alone.add("b")  # in its place
    assert alone.homes.of(1) == NOWHERE


@pytest.mark.parametrize(
    "wrong", [{"name": "b"}, {"name": "a", "url": "https://127.0.0.1:9", "ca": "/nonexistent.pem"}]
)
def test_one_that_cannot_be_replaced_stays_as_it_was(wrong: dict[str, str]) -> None:
    alone = Alone()
    alone.add("a")
    alone.add("b")
    a, b = alone.backends
    a.discovered = True
    with pytest.raises(FairleadError, match=r"called b already|nonexistent\.pem"):
        alone.backends.replace(a, BackendSettings.model_validate({"url": "http://127.0.0.1:9", **wrong}))
    assert list(alone.backends) == [a, b]
    assert (a.name, a.state, a.discovered) == ("a", "up", True)


def test_an_unhealthy_backend_gets_nothing_and_keeps_what_it_has(play, prompt):
    """Health checks do not touch what is in flight, nor its counters."""

    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        world.backends[1].healthy = False
        await world.until(lambda: world.gateway.backends.find("b1").state == "unhealthy")
        running = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(4)]
        await world.until(lambda: len(world.backends[0].requests) == 4)
        world.backends[0].healthy = False
        world.backends[1].healthy = True
        await world.until(lambda: world.gateway.backends.find("b0").state == "unhealthy")
        await world.until(lambda: world.gateway.backends.find("b1").state == "up")
        assert world.gateway.backends.find("b0").in_flight == 4
        for _ in range(4):
            assert (await world.ask(body=prompt)).json["id"] == "b1"
        gate.set()
        assert [(await each).json["id"] for each in running] == ["b0"] * 4

    play(scene)


def test_a_backend_returns_slowly(play, prompt):
    async def scene(world):
        world.backends[0].healthy = False
        await world.until(lambda: world.gateway.backends.find("b0").state == "unhealthy")
        world.backends[0].healthy = True
        await world.until(lambda: world.gateway.backends.find("b0").state == "up")
        for _ in range(100):
            await world.ask(body=prompt)
        assert 0 < len(world.backends[0].requests) < 30

    play(scene, health={"slow_return_s": 1000.0}, policy={"router": "round_robin"})


def test_a_backend_that_leaves_is_forgotten_though_its_last_request_went_elsewhere(play, prompt):
    async def scene(world):
        leaving, other = world.gateway.backends
        let_go = asyncio.Event()

        async def die(backend, client, asked):
            await let_go.wait()
            client.reset()
            return False

        world.backends[0].behave = die
        other.draining = True
        asking = asyncio.ensure_future(world.ask(body=prompt))
        await world.until(lambda: len(world.backends[0].requests) == 1)
        other.draining = False
        world.gateway.backends.drain(leaving, remove=True)
        let_go.set()
        assert (await asking).json["id"] == "b1"
        await world.until(lambda: list(world.gateway.backends) == [other], "the end of it")

    play(scene, health={"interval": 0.05, "fail_after": 1000})
