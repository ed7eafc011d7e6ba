"""Backends found by the addresses of a name."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fairlead.errors import FairleadError
from fairlead.serve import discovery as module
from fairlead.serve.discovery import Discovery
from fairlead.serve.gateway import Gateway
from fairlead.serve.settings import GatewaySettings, parse_settings

BY_NAME = {"host": "vllm", "port": 8000, "template": {"max_in_flight": 7}}


class Names:
    """What the name resolves to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] | None = []
        self.error: Exception | None = None

        async def resolve(host: str) -> list[str]:
            assert host == "vllm"
            if self.error is not None:
                raise self.error
            if self.addresses is None:
                raise OSError("no such name")
            return self.addresses

        monkeypatch.setattr(module, "resolve", resolve)


@pytest.fixture
def names(monkeypatch) -> Names:
    return Names(monkeypatch)


def settings(**more: object) -> GatewaySettings:
    usual = {"discovery": BY_NAME, "logs": {"requests": False}, "policy": {"router": "least_work"}}
    return parse_settings({**usual, **more}, "test")


def run(scene: Callable[[Gateway, Callable[[], Awaitable[None]]], Awaitable[None]], **more: object) -> None:
    async def main() -> None:
        gateway = Gateway(settings(**more))
        discovery = Discovery(gateway)

        async def look() -> None:
            assert gateway.settings.discovery is not None
            await discovery.look(gateway.settings.discovery)

        await scene(gateway, look)

    asyncio.run(main())


def urls(gateway: Gateway) -> list[str]:
    return [backend.settings.url for backend in gateway.backends]


def test_backends_come_and_go_with_the_addresses(names):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1", "10.0.0.2"]
        await look()
        assert urls(gateway) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
        assert [backend.settings.max_in_flight for backend in gateway.backends] == [7, 7]
        names.addresses = ["10.0.0.2", "fd00::3"]
        await look()
        assert urls(gateway) == ["http://10.0.0.2:8000", "http://[fd00::3]:8000"]

    run(scene)


def test_whoever_waits_is_told_of_several_that_come_and_go_when_all_of_them_have(names, monkeypatch):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1", "10.0.0.2"]
        await look()
        found: list[list[str]] = []
        monkeypatch.setattr(gateway.queue, "released", lambda: found.append(urls(gateway)))
        names.addresses = ["10.0.0.3", "10.0.0.4"]
        await look()
        assert found == [["http://10.0.0.3:8000", "http://10.0.0.4:8000"]]

    run(scene)


def test_one_that_has_gone_finishes_what_it_has_and_may_return_meanwhile(names):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1", "10.0.0.2"]
        await look()
        busy, _ = gateway.backends
        busy.in_flight = 1
        names.addresses = ["10.0.0.2"]
        await look()
        assert busy in gateway.backends and not busy.up
        names.addresses = ["10.0.0.1", "10.0.0.2"]
        await look()
        assert busy.up and len(gateway.backends) == 2

    run(scene)


def test_a_name_that_cannot_be_resolved_changes_nothing(names):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1"]
        await look()
        names.addresses = None
        await look()
        await look()
        assert urls(gateway) == ["http://10.0.0.1:8000"]
        names.addresses = ["10.0.0.9"]
        await look()
        assert urls(gateway) == ["http://10.0.0.9:8000"]

    run(scene)


def test_listed_backends_stay_and_found_ones_survive_a_reload(names):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1", "10.0.0.5"]
        await look()
        assert urls(gateway) == ["http://10.0.0.5:8000", "http://10.0.0.1:8000"]
        gateway.reload(settings(backends=[]))
        assert urls(gateway) == ["http://10.0.0.1:8000"]
        await look()
        assert urls(gateway) == ["http://10.0.0.1:8000", "http://10.0.0.5:8000"]

    run(scene, backends=[{"url": "http://10.0.0.5:8000"}])


def test_a_real_name_is_resolved():
    async def scene(gateway, look):
        assert await module.resolve("localhost")
        with pytest.raises(OSError):
            await module.resolve("no-such-name.invalid")

    run(scene)


def test_it_runs_on_its_own_and_lets_go_when_the_settings_name_no_host(names):
    async def main() -> None:
        gateway = Gateway(settings())
        discovery = Discovery(gateway)
        names.addresses = ["10.0.0.1"]
        discovery.start()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if gateway.backends:
                break
        assert urls(gateway) == ["http://10.0.0.1:8000"]
        discovery.follow({})
        assert not gateway.backends
        await discovery.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"host": "vllm", "template": {"url": "http://x"}}, "url is that of each address"),
        ({"host": "vllm", "template": {"sped": 2}}, "sped"),
        ({"port": 8000}, "host"),
    ],
)
def test_wrong_settings_are_refused(section, complaint):
    with pytest.raises(FairleadError, match=complaint):
        parse_settings({"discovery": section}, "test")


def test_another_template_reaches_the_backends_that_were_found(names):
    async def scene(gateway, look):
        names.addresses = ["10.0.0.1"]
        await look()
        (backend,) = gateway.backends
        assert backend.limit == 7
        gateway.reload(settings(discovery={**BY_NAME, "template": {"max_in_flight": 50, "api_key": "new"}}))
        await look()
        (backend,) = gateway.backends
        assert (backend.limit, backend.authorization) == (50, b"Bearer new")
        await look()
        assert list(gateway.backends) == [backend]

    run(scene)


def test_a_name_that_cannot_be_one_is_told_and_looked_up_again(names, capsys):
    async def scene(gateway, look):
        names.error = UnicodeError("label empty or too long")
        await look()
        names.error = None
        names.addresses = ["10.0.0.1"]
        await look()
        assert len(gateway.backends) == 1

    run(scene)
    assert "label empty" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"max_in_flight": 9}], ids=["as it was", "changed"])
def test_one_that_was_found_and_is_listed_now_stays(names, changes):
    """Whether or not the name still has its address, and though the old one has something to finish."""

    async def scene(gateway, look):
        names.addresses = ["10.0.0.1"]
        await look()
        (found,) = gateway.backends
        found.in_flight = 1
        listed = {**found.settings.model_dump(mode="json", exclude_unset=True), **changes}
        gateway.reload(settings(backends=[{**listed, "name": found.name}]))
        for addresses in (["10.0.0.1"], []):
            names.addresses = addresses
            await look()
            up = [backend for backend in gateway.backends if backend.up]
            assert [(backend.name, backend.discovered) for backend in up] == [("10.0.0.1:8000", False)]

    run(scene)
