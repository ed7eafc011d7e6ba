"""The process: signals, settings, TLS, logs; a gateway of its own, started as users start it."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.errors import FairleadError
from fairlead.serve.settings import BackendSettings
from fairlead.serve.upstream import Pool
from fairlead.workload.scenario import load_scenario


async def start(
    tmp_path: Path, content: dict[str, Any]
) -> tuple[asyncio.subprocess.Process, int, list[dict[str, Any]]]:
    """A gateway process on settings in `tmp_path`, its port, and the events that it has told."""
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(content))
    with (tmp_path / "requests.jsonl").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "fairlead",
                "serve",
                "--config",
                str(tmp_path / "gateway.yaml"),
                "--port",
                "0",
            ),
            stdout=log,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONWARNINGS": "default"},
        )
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] != "listening":
        assert process.stderr is not None
        line = await process.stderr.readline()
        assert line, "it ended"
        if line.startswith(b"{"):
            events.append(json.loads(line))
    return process, int(events[-1]["url"].rsplit(":", 1)[1]), events


def settings(world, **more):
    return {
        "backends": [{"url": each.url, "name": each.name} for each in world.backends],
        "health": {"interval": 0.05, "slow_return_s": 0},
    } | more


def test_speeds_that_nobody_declared_are_told(play, tmp_path):
    """They are assumed, which no policy can make up for: silence would be a fallback that nobody notices."""

    async def scene(world):
        told = {}
        for name, declared in (
            ("none", {}),
            ("all", {"speed": 1.0, "prefill_tokens_per_s": 9000, "decode_iteration_s": 0.02}),
        ):
            content = settings(world)
            content["backends"] = [each | declared for each in content["backends"]]
            process, _, events = await start(tmp_path, content)
            told[name] = [each for each in events if each["event"] == "speeds_assumed"]
            process.terminate()
            await process.wait()
        assert told["all"] == []
        assert told["none"][0]["backends"] == [each.url for each in world.backends]
        assert "fairlead probe --measure" in told["none"][0]["advice"]

    play(scene)


def test_sigterm_lets_requests_finish(play, prompt, tmp_path):
    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        process, port, _ = await start(tmp_path, settings(world))
        client = await world.client(port)
        idle = await world.client(port)
        client.request(body=prompt | {"stream": True})
        await world.until(lambda: len(world.backends[0].requests) == 1)
        process.send_signal(signal.SIGTERM)
        assert await idle.closed()
        with pytest.raises(OSError):
            await world.client(port)  # no new connections
        gate.set()
        answer = await client.answer()
        assert (answer.status, answer.complete, answer.events[-1]) == (200, True, "[DONE]")
        assert await process.wait() == 0
        (line,) = (tmp_path / "requests.jsonl").read_text().splitlines()
        assert json.loads(line)["outcome"] == "ok"

    play(scene, backends=1)


def test_kill_9_closes_both_sides_and_a_restart_is_clean(play, prompt, tmp_path):
    async def scene(world):
        world.backends[0].gate = asyncio.Event()
        process, port, _ = await start(tmp_path, settings(world))
        clients = [await world.client(port) for _ in range(5)]
        for client in clients:
            client.request(body=prompt)
        await world.until(lambda: len(world.backends[0].requests) == 5)
        process.kill()
        assert all([await client.closed() for client in clients])
        await world.until(lambda: world.backends[0].cancelled == 5)
        await process.wait()
        world.backends[0].gate = None
        process, port, _ = await start(tmp_path, settings(world))
        client = await world.client(port)
        client.request(body=prompt)
        assert (await client.answer()).status == 200
        process.terminate()
        assert await process.wait() == 0

    play(scene, backends=1)


def test_sighup_reads_the_settings_again(play, prompt, tmp_path):
    async def scene(world):

        async def next_event(name):
            while True:
                assert process.stderr is not None
                event = json.loads(await process.stderr.readline())
                if event["event"] == name:
                    return event

        first = settings(world)
        first["backends"] = first["backends"][:1]
        process, port, _ = await start(tmp_path, first)
        assert process.stderr is not None
        client = await world.client(port)
        client.request(body=prompt)
        assert (await client.answer()).json["id"] == "b0"
        second = settings(world)
        second["backends"] = second["backends"][1:]
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(second))
        process.send_signal(signal.SIGHUP)
        assert (await next_event("reloaded"))["backends"][-1] == "b1"
        client.request(body=prompt)
        assert (await client.answer()).json["id"] == "b1"
        (tmp_path / "gateway.yaml").write_text("bakcends: []")
        process.send_signal(signal.SIGHUP)
        assert "did you mean backends" in (await next_event("reload_failed"))["error"]
        client.request(body=prompt)
        assert (await client.answer()).status == 200
        process.terminate()
        await process.wait()

    play(scene)


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        [*command, "-out", str(files[0]), "-keyout", str(files[1])], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("there is no openssl to make a certificate with")
    return files


def test_backends_may_speak_tls(play, prompt, certificate):
    cert, key = certificate

    def secure(backends):
        for each in backends:
            port = each.port
            each._server.close()
            each.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            each.tls.load_cert_chain(cert, key)
            each.port = port

    async def scene(world):
        for each in world.backends:
            await each.start()
        world.server.monitor.follow()
        for stream in (False, True):
            answer = await world.ask(body=prompt | {"stream": stream})
            assert (answer.status, answer.complete) == (200, True)
        stranger = BackendSettings(url=world.backends[1].url, name="stranger")  # its signer is not known
        world.gateway.backends.add(stranger)
        for name in ("b0", "b1"):
            world.gateway.backends.find(name).draining = True
        answer = await world.ask(body=prompt)
        assert answer.status == 502 and "certificate" in answer.json["error"]["message"].lower()

    play(scene, before=secure, per_backend={"ca": str(cert)}, health={"fail_after": 1000})
    with pytest.raises(FairleadError, match="cannot be used"):
        Pool("https://127.0.0.1:1", 1.0, 1.0, key.parent / "none.pem")


def test_tls(play, prompt, certificate):
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))

    async def scene(world):
        client = await world.client(ssl=context)
        for stream in (False, True):
            client.request(body=prompt | {"stream": stream})
            answer = await client.answer()
            assert (answer.status, answer.complete) == (200, True)
        assert world.backends[0].requests[0][2]["x-forwarded-proto"] == "https"
        plain = await world.client()
        plain.request(body=prompt)
        assert await plain.closed()

    play(
        scene,
        backends=1,
        tls={"certificate": str(cert), "key": str(key)},
    )


def test_the_decision_log_becomes_a_scenario(play, prompt, tmp_path, capsys):
    log = tmp_path / "decisions.jsonl"

    async def scene(world):
        for i in range(6):
            stream = {"stream": i % 2 == 0, "stream_options": {"include_usage": True}}
            await world.ask(body=prompt | {"max_tokens": i + 1} | stream)
        world.backends[0].behave = world.backends[1].behave = failing
        await world.ask(body=prompt)

    async def failing(backend, client, asked):
        backend.plain(client, 500, b"{}")
        return True

    play(scene, logs={"decisions": str(log)}, policy={"shadow": "lor"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["output_tokens"] for line in lines] == [1, 2, 3, 4, 5, 6, 0]
    assert all(line["choice"] in line["backends"] for line in lines)
    assert all(line["shadow"] in line["backends"] for line in lines)
    assert len(lines[0]["replicas"]) == 2

    from fairlead.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["replay-log", str(log), "--scenario", "chat-equal", "--out", str(tmp_path / "mine"), "--json"])
    assert stop.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == 1
    scenario = load_scenario(str(tmp_path / "mine" / "scenario.yaml"))
    assert len(scenario.replicas) >= 1
    assert list(scenario.loads) == told["loads"]
    rows = (tmp_path / "mine" / "requests.csv").read_text().splitlines()
    assert rows[1].startswith("0.000000,7,1") and rows[-1].endswith(",7,6")


def test_serving_needs_neither_torch_nor_the_simulator(tmp_path):
    # A cache of its own: Numba's index of a function that both rooms call names the types of both.
    alone = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    code = (
        "import sys, fairlead.cli.serve, fairlead.serve.server\n"
        "from fairlead.serve.gateway import Gateway\n"
        "from fairlead.serve.settings import parse_settings\n"
        "Gateway(parse_settings({'backends': [{'url': 'http://127.0.0.1:1'}]}, 'test'))\n"
        "names = {'torch', 'onnx', 'tensorboard', 'tokenizers'}\n"
        "names |= {'fairlead.simulator', 'fairlead.env', 'fairlead.train', 'fairlead.workload'}\n"
        "assert 'fairlead.policy.artefact' in sys.modules  # a trained policy was loaded\n"
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=alone
    )
    assert done.returncode == 0, done.stderr
