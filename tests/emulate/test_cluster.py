"""A cluster of emulated servers on real sockets."""

import asyncio
import json

import numpy as np
import pytest

from fairlead.emulate.clock import LoopClock
from fairlead.emulate.cluster import Server, build
from fairlead.errors import FairleadError
from fairlead.evaluate.live import replay
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import load_scenario

SPEED = 20.0


def servers(port: int = 0) -> list[Server]:
    clock = LoopClock(asyncio.get_running_loop(), SPEED)
    return build(load_scenario("chat-unequal"), clock, host="127.0.0.1", port=port, seed=0)


async def ask(server: Server, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    first, _, content = answer.partition(b"\r\n\r\n")
    return int(first.split()[1]), content


def test_a_replayed_workload_is_answered_by_the_replicas_it_was_sent_to():
    requests = Requests(np.linspace(0.0, 2.0, 20), np.arange(20) + 1, np.arange(20) + 2)

    async def main() -> None:
        cluster = servers()
        for server in cluster:
            await server.start()
        assert len({server.port for server in cluster}) == 4
        for i, server in enumerate(cluster[:2]):
            url = f"http://{server.host}:{server.port}"
            run = await replay(url, requests, model="llama-3-8b", lengths="hint", speed=SPEED)
            assert run.failed == 0, run.errors
            assert run.output_tokens.tolist() == requests.output_tokens.tolist()
            assert set(run.replica) == {i}
            assert server.endpoint.engine.tally.finished["stop"] == 20
            # Not a token is early: no engine could have been faster than an idle one.
            assert (run.finish_s - run.first_token_s > 0).all()
        for server in cluster:
            server.stop()

    asyncio.run(main())


def test_a_killed_server_cuts_its_streams_and_comes_back_empty():
    async def main() -> None:
        server = servers()[0]
        await server.start()
        reader, writer = await asyncio.open_connection(server.host, server.port)
        body = json.dumps({"prompt": "a", "max_tokens": 100_000, "ignore_eos": True, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readuntil(b"data: ")
        assert server.endpoint.load == 1
        assert (await ask(server, "POST", "/emulator", b'{"down_s":0.3}'))[0] == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"[DONE]")
        writer.close()
        with pytest.raises(OSError):
            await ask(server, "GET", "/health")
        for _ in range(100):
            await asyncio.sleep(0.05)
            try:
                status, _ = await ask(server, "GET", "/health")
            except OSError:
                continue
            break
        assert status == 200
        assert (server.endpoint.load, server.endpoint.engine.running) == (0, 0)
        assert server.endpoint.engine.tally.generated_tokens == 0
        server.stop()

    asyncio.run(main())


def test_the_faults_of_a_scenario_happen(clock):
    scenario = load_scenario("chat-equal").replace(
        faults=(
            {"kind": "slowdown", "replica": 1, "factor": 3, "start_s": 5, "duration_s": 10, "every_s": 100},
            {"kind": "outage", "replica": 2, "start_s": 7, "duration_s": 4},
        )
    )

    async def main() -> None:
        cluster = build(scenario, clock, host="127.0.0.1", port=0, seed=0)
        for server in cluster:
            await server.start()

        def paces() -> list[float]:
            return [server.endpoint.engine.pace for server in cluster]

        clock.run_until(4.9)
        assert paces() == [1.0, 1.0, 1.0, 1.0]
        clock.run_until(5.0)
        assert paces() == [1.0, 3.0, 1.0, 1.0]
        clock.run_until(7.0)
        with pytest.raises(OSError):
            await ask(cluster[2], "GET", "/health")
        clock.run_until(11.0)
        await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0.01)
            try:
                assert (await ask(cluster[2], "GET", "/health"))[0] == 200
            except OSError:
                continue
            break
        else:
            raise AssertionError("it did not return")
        clock.run_until(15.0)
        assert paces() == [1.0, 1.0, 1.0, 1.0]
        clock.run_until(105.0)
        assert paces() == [1.0, 3.0, 1.0, 1.0]
        for server in cluster:
            server.stop()

    asyncio.run(main())


def test_a_taken_port_is_an_error_that_names_it():
    async def main() -> None:
        first = servers()[0]
        await first.start()
        second = servers(port=first.port)[0]
        with pytest.raises(FairleadError, match=rf"cannot listen on 127.0.0.1:{first.port}"):
            await second.start()
        first.stop()

    asyncio.run(main())


def test_ports_follow_each_other():
    async def main() -> None:
        assert [server.port for server in servers(port=9000)] == [9000, 9001, 9002, 9003]

    asyncio.run(main())
