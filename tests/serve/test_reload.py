"""Settings that are read again: all of them are taken up, or none."""

import asyncio
import ssl
import subprocess

import pytest

from fairlead.serve.settings import parse_settings


def again(world, **changes):
    """Settings as they are, with changes; the backends' by name."""
    content = world.gateway.settings.model_dump(mode="json")
    content["backends"] = [
        {**each, **changes.get(each["name"], {})}
        for each in content["backends"]
        if changes.get(each["name"], {}) is not None
    ]
    content |= {key: value for key, value in changes.items() if key in content}
    world.server._reload = lambda: parse_settings(content, "test")
    world.server.reload()


def test_one_backend_that_cannot_be_used_changes_nothing(play, prompt, capsys):
    async def scene(world):
        gateway = world.gateway
        before, backends = gateway.settings, list(gateway.backends)
        policy = {**before.policy.model_dump(mode="json"), "router": "lor"}
        bad = {"url": "https://127.0.0.1:9", "ca": "/nonexistent.pem"}
        again(world, b0=bad, b1={"max_in_flight": 5}, policy=policy)
        assert gateway.settings is before and list(gateway.backends) == backends
        assert gateway.decider.router.name == "least_work"
        assert not any(backend.draining for backend in backends)
        assert (await world.ask(body=prompt)).status == 200
        assert "nonexistent.pem" in capsys.readouterr().err

    play(scene)


def test_what_was_drained_by_hand_stays_so_and_what_is_wanted_again_serves(play, prompt):
    async def scene(world):
        gateway = world.gateway
        first, second = gateway.backends
        for backend in world.backends:
            backend.gate = asyncio.Event()
        asking = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(3)]
        await world.until(lambda: len(gateway.queue) == 1)
        gateway.backends.drain(first, remove=False)
        again(world, b1=None)
        assert second.leaving
        content = gateway.settings.model_dump(mode="json")
        content["backends"].append(second.settings.model_dump(mode="json"))
        second.limit = 2
        world.server._reload = lambda: parse_settings(content, "test")
        world.server.reload()
        assert (first.state, second.state) == ("draining", "up")
        assert not gateway.queue  # who waited was told that there is a place again
        for backend in world.backends:
            backend.gate.set()
        assert {(await each).status for each in asking} == {200}

    play(scene, per_backend={"max_in_flight": 1})


def test_backends_that_finish_under_old_settings_have_names_of_their_own(play, prompt):
    async def scene(world):
        world.backends[0].gate = asyncio.Event()
        asking = []
        for limit in (5, 6, 7):
            asking.append(asyncio.ensure_future(world.ask(body=prompt)))
            await world.until(lambda: len(world.backends[0].requests) == len(asking))
            again(world, b0={"max_in_flight": limit})
        names = [backend.name for backend in world.gateway.backends]
        assert names == ["b0 (replaced)", "b0 (replaced 1)", "b0 (replaced 2)", "b0"]
        world.backends[0].gate.set()
        assert {(await each).status for each in asking} == {200}
        await world.until(lambda: len(world.gateway.backends) == 1)

    play(scene, backends=1)


def test_what_waits_for_a_restart_is_named(play, capsys):
    async def scene(world):
        content = world.gateway.settings.model_dump(mode="json")
        again(
            world, timeouts={**content["timeouts"], "connect": 9, "pool_idle": 1.5}, prefixes={"chunks": 64}
        )
        assert '"needs_restart":["prefixes"]' in capsys.readouterr().err
        pool = world.gateway.backends.find("b0").pool
        assert (pool.connect_timeout, pool.idle_timeout) == (9, 1.5)

    play(scene)


def test_a_certificate_is_read_again(play, prompt, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue(name):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(key), "-out", str(cert)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
        subprocess.run(command, check=True, capture_output=True)
        return cert.read_text()

    async def scene(world):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        async def served():
            client = await world.client(ssl=context)
            shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            client.request(body=prompt)
            assert (await client.answer()).status == 200
            return ssl.DER_cert_to_PEM_cert(shown)

        assert await served() == first
        second = issue("second")
        again(world)
        assert await served() == second
        cert.write_text("no certificate")
        again(world)
        assert await served() == second

    first = issue("first")
    play(scene, tls={"certificate": str(cert), "key": str(key)})


@pytest.mark.parametrize("keys", [[""], ["good", " "]])
def test_an_empty_key_is_refused(keys):
    with pytest.raises(Exception, match="a key is empty"):
        parse_settings({"backends": [{"url": "http://x:1"}], "api_keys": keys}, "test")
