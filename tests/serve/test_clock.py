"""The gateway's times are those of a clock that only goes forward."""

import itertools
import re
import time
from pathlib import Path

import pytest

import fairlead.serve

PROMPT = {"model": "m", "prompt": "Once upon a time", "max_tokens": 4}


def test_only_time_stamps_in_logs_come_from_the_wall_clock():
    folder = Path(fairlead.serve.__file__).parent
    wall = re.compile(r"\btime\.time\b|from time import .*\btime\b|\bdatetime\b")
    assert [path.name for path in folder.glob("*.py") if wall.search(path.read_text())] == ["logs.py"]


@pytest.mark.parametrize("jumps", [(0.0, 4e9), (2e9, 1e9, 1.9e9), (-1.0, 1e9)])
def test_a_wall_clock_that_jumps_takes_no_backend_out_and_ends_no_request(play, monkeypatch, capsys, jumps):
    there = itertools.cycle(jumps)

    async def scene(world):
        readings = [backend.reading for backend in world.gateway.backends]
        for i in range(30):
            answer = await world.ask(body=PROMPT | {"stream": i % 2 == 0})
            assert (answer.status, answer.complete) == (200, True)
        await world.until(lambda: [each.reading for each in world.gateway.backends] != readings, "a scrape")
        assert world.answered == 30
        for backend in world.gateway.backends:
            assert (backend.state, backend.ejections, backend.failed_checks) == ("up", 0, 0)
            assert all(0.0 <= each.total < 60.0 for each in (backend.ttft, backend.itl, backend.e2e))
        assert abs(world.gateway.decider.room(2).replicas).max() < 1e9
        assert not world.gateway.queue.refused

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(there))
        play(scene, logs={"requests": True}, policy={"router": "round_robin", "deadline": 60.0})
    assert capsys.readouterr().out.count('"outcome":"ok"') == 30
