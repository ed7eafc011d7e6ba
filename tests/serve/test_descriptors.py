"""The limit of open files: raised as far as allowed; beyond what it bears, connections are refused."""

import resource

import pytest

from fairlead.serve import descriptors
from fairlead.serve.descriptors import SPARE, most_connections, raise_limit


@pytest.fixture
def soft_limit():
    """Sets this process's limit; the old one is back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_to_what_is_allowed(soft_limit):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft_limit(300)
    assert most_connections() == (300 - SPARE) // 2
    assert raise_limit() == (2**31 if hard == resource.RLIM_INFINITY else hard)


def test_more_connections_than_open_files_allow_are_refused(play, prompt, monkeypatch, capsys):
    """Running out of files would make the backends look broken."""
    monkeypatch.setattr(descriptors, "file_limit", lambda: SPARE + 6)

    async def scene(world):
        assert world.gateway.limits.max_connections == 3
        kept = [await world.client() for _ in range(3)]
        await world.until(lambda: len(world.gateway.connections) == 3)
        assert (await world.ask(body=prompt)).status == 503
        for client in kept:
            client.request(body=prompt)
            assert (await client.answer()).status == 200

    play(scene)
    assert '"event":"few_open_files","max_connections":3' in capsys.readouterr().err
