"""The admin API, and changes while requests are running."""

import asyncio
import json
from pathlib import Path

import pytest

from fairlead.policy.export import export_onnx

TOKEN = "a-secret-token"
ADMIN = {"admin": {"token": TOKEN}}


async def call(world, method, path, body=None, token=TOKEN):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.admin_port)
    data = b"" if body is None else json.dumps(body).encode()
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status = int(head.split()[1])
    return status, json.loads(content) if b"application/json" in head else content.decode()


def test_the_token_is_needed(play):
    async def scene(world):
        assert (await call(world, "GET", "/status", token="wrong"))[0] == 401
        assert (await call(world, "POST", "/policy", {"router": "lor"}, token=""))[0] == 401
        status, page = await call(world, "GET", "/", token="")
        assert status == 200 and "<title>Fairlead gateway" in page and TOKEN not in page
        assert (await world.ask("/status")).status == 404  # not on the clients' port

    play(scene, **ADMIN)


def test_status(play, prompt):
    async def scene(world):
        for _ in range(4):
            await world.ask(body=prompt | {"stream": True})
        _, status = await call(world, "GET", "/status")
        assert status["policy"]["router"] == "least_work"
        assert status["requests"] == [{"path": "/v1/completions", "status": 200, "count": 4}]
        assert sum(each["requests"] for each in status["backends"]) == 4
        assert {each["state"] for each in status["backends"]} == {"up"}
        assert status["backends"][0]["view"]["in_flight"] == 0

    play(scene, **ADMIN)


def test_backends_come_and_go_under_load(play, prompt):
    """No request is lost: what a leaving backend has, it finishes."""

    async def scene(world):
        running = True
        good = 0

        async def client():
            nonlocal good
            while running:
                answer = await world.ask(body=prompt | {"stream": True})
                assert (answer.status, answer.complete) == (200, True)
                good += 1

        _, third = world.backends[:2], world.backends[2]
        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        assert (await call(world, "DELETE", "/backends/b2"))[0] == 200
        await world.until(lambda: len(world.gateway.backends) == 2)
        ended = third.ended
        await asyncio.sleep(0.1)
        assert third.ended == ended
        assert (await call(world, "POST", "/backends", {"url": third.url, "name": "back"}))[0] == 200
        await world.until(lambda: third.ended > ended)
        assert (await call(world, "POST", "/backends/b0/drain"))[0] == 200
        await world.until(lambda: world.gateway.backends.find("b0").in_flight == 0)
        assert world.gateway.backends.find("b0").state == "draining"
        assert (await call(world, "POST", "/backends/b0/resume"))[0] == 200
        before = world.backends[0].ended
        await world.until(lambda: world.backends[0].ended > before)
        running = False
        await asyncio.gather(*clients)
        assert good == world.answered

    play(scene, backends=3, **ADMIN)


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/policy", {"router": "nonsense"}, "unknown router"),
        ("POST", "/policy", {"ruoter": "lor"}, "did you mean router"),
        ("POST", "/policy", {"router": "lookahead"}, "cannot serve"),
        ("POST", "/policy", {"shadow": "nonsense"}, "unknown router"),
        ("POST", "/policy", {"router": "missing.onnx"}, "no policy file"),
        ("POST", "/backends", {"url": "127.0.0.1"}, "not the address"),
        ("POST", "/backends", {"url": "http://x:1", "name": "b0"}, "called b0 already"),
        ("DELETE", "/backends/nobody", None, "known: b0, b1"),
        ("PUT", "/status", {}, "no PUT /status"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(play, prompt, method, path, body, says):
    async def scene(world):
        before = world.gateway.decider.router
        status, reply = await call(world, method, path, body)
        assert status in (404, 422) and says in reply["error"]["message"]
        assert world.gateway.decider.router is before
        assert (await world.ask(body=prompt)).status == 200

    play(scene, **ADMIN)


def test_the_policy_is_swapped_and_shadowed_while_running(play, prompt, tmp_path: Path):
    network = pytest.importorskip("fairlead.policy.network")
    export_onnx(network.RouterNetwork(), tmp_path / "p.onnx", config={}, training={})

    async def scene(world):
        await world.ask(body=prompt)
        learned = {"router": str(tmp_path / "p.onnx"), "favor": 0.8, "shadow": "round_robin", "deadline": 5.0}
        assert (await call(world, "POST", "/policy", learned))[0] == 200
        for _ in range(6):
            assert (await world.ask(body=prompt)).status == 200
        _, status = await call(world, "GET", "/status")
        assert status["decisions"] == {"least_work": 1, "p": 6}
        assert status["shadow"]["decisions"] == 6

    play(scene, **ADMIN, policy={"deadline": 5.0})


def test_the_shadow_goes_on_until_it_is_switched_off(play, prompt):
    async def scene(world):
        async def shadowed(change):
            assert (await call(world, "POST", "/policy", change))[0] == 200
            assert (await world.ask(body=prompt)).status == 200
            _, status = await call(world, "GET", "/status")
            policy = status["policy"]
            return policy["router"], policy["shadow"], policy["shadow_favor"], status["shadow"]["decisions"]

        assert await shadowed({"router": "lor"}) == ("lor", "round_robin", 0.25, 1)
        assert await shadowed({"shadow": "p2c"}) == ("lor", "p2c", 0.25, 2)
        assert await shadowed({"shadow": None}) == ("lor", None, 0.25, 2)
        assert await shadowed({"router": "least_work"}) == ("least_work", None, 0.25, 2)

    play(scene, **ADMIN, policy={"shadow": "round_robin", "shadow_favor": 0.25})


@pytest.mark.parametrize("body", [b'{"router": "\xff"}', b"[" * 100_000], ids=["no text", "nested"])
def test_bytes_that_are_no_json_are_answered(play, body):
    async def scene(world):
        client = await world.client(world.server.admin_port)
        client.request("/policy", body, headers={"Authorization": f"Bearer {TOKEN}"})
        answer = await client.answer()
        assert answer.status == 422 and "not JSON" in answer.json["error"]["message"]

    play(scene, **ADMIN)


def test_what_nobody_foresaw_is_answered_too(play, monkeypatch):
    async def scene(world):
        def fail(name):
            raise RuntimeError("out of luck")

        monkeypatch.setattr(world.gateway.backends, "find", fail)
        status, reply = await call(world, "DELETE", "/backends/b0")
        assert status == 500 and "out of luck" in reply["error"]["message"]

    play(scene, **ADMIN)


def test_connections_that_say_nothing_are_closed(play):
    """A hundred of them would lock everybody out."""

    async def scene(world):
        clients = [await world.client(world.server.admin_port) for _ in range(101)]
        for client in clients[:100]:  # one more is refused
            assert await asyncio.wait_for(client.closed(), 5)
        status, _ = await call(world, "GET", "/status")
        assert status == 200

    play(scene, timeouts={"header": 0.2}, **ADMIN)


def test_the_answer_to_head_has_no_body(play):
    async def scene(world):
        client = await world.client(world.server.admin_port)
        for _ in range(2):
            client.request("/", method="HEAD")
            answer = await client.answer(head_only=True)
            assert answer.status == 401 and int(answer.headers["content-length"]) > 0

    play(scene, **ADMIN)
