"""The dashboard in a real browser: headless Chromium loads the page from a running gateway."""

import asyncio
import re
import subprocess
from html import unescape
from pathlib import Path

import pytest

TOKEN = "a-secret-token"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",  # the page's console goes there
)


async def dump(chromium: str, url: str, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after about three seconds of its time, and the lines of its console."""
    process = await asyncio.create_subprocess_exec(
        chromium,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3500",
        "--dump-dom",
        url,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        page, log = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, log.decode()
    return page.decode(), [line for line in log.decode().splitlines() if "CONSOLE" in line]


def body_rows(page: str, table: str) -> list[list[str]]:
    """The texts of a table's cells, row by row."""
    found = re.search(rf'<tbody id="{table}">(.*?)</tbody>', page, re.S)
    assert found is not None, page
    rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in cells]


@pytest.mark.browser
def test_the_page_shows_load_decisions_and_latencies(play, prompt, tmp_path, chromium):
    async def scene(world):
        for _ in range(6):
            assert (await world.ask(body=prompt | {"stream": True})).complete
        for each in world.backends:  # from now on answers wait: there is load to be seen
            each.gate = asyncio.Event()
        clients = [await world.client() for _ in range(3)]
        for client in clients:
            client.request(body=prompt | {"stream": True})
        await world.until(lambda: sum(len(each.requests) for each in world.backends) == 9)

        url = f"http://127.0.0.1:{world.server.admin_port}/#token={TOKEN}"
        page, console = await dump(chromium, url, tmp_path / "profile")
        assert console == []
        assert '<span id="state">(ready)</span>' in page
        assert "policy lor" in page and re.search(r"decision p50 [\d.]+ m?s, p99 [\d.]+ m?s", page)
        assert "in flight 3" in page
        rows = body_rows(page, "backends")
        assert [row[:2] for row in rows] == [["b0", "up"], ["b1", "up"]]
        assert sorted(row[2] for row in rows) == ["1 (1)", "2 (2)"]  # waiting for a first token, all three
        for row in rows:
            ttft, e2e = row[6], row[8]
            assert re.fullmatch(r"[\d.]+ m?s / [\d.]+ m?s", ttft), row
            assert re.fullmatch(r"[\d.]+ m?s / [\d.]+ m?s", e2e), row
            assert row[11] == "0"
        assert sum(int(row[9]) for row in rows) == 9
        assert sum(int(row[10].rstrip(" %")) for row in rows) in (99, 100, 101)
        assert body_rows(page, "answers") == [["/v1/completions", "200", "6"]]
        # A line per backend; more than one point each: the page has refreshed itself.
        lines = re.findall(r'<polyline points="([^"]*)"', page)
        assert len(lines) == 2 and all(len(line.split()) >= 2 for line in lines)

        for each in world.backends:
            assert each.gate is not None
            each.gate.set()
        assert all([(await client.answer()).complete for client in clients])

    play(scene, policy={"router": "lor"}, admin={"token": TOKEN}, limit_s=150)


@pytest.mark.browser
def test_a_wrong_token_shows_nothing_but_the_form(play, tmp_path, chromium):
    async def scene(world):
        url = f"http://127.0.0.1:{world.server.admin_port}/#token=wrong-token"
        page, console = await dump(chromium, url, tmp_path / "profile")
        assert "this token is not the right one" in page
        assert '<form id="login">' in page  # not hidden
        assert body_rows(page, "backends") == []
        # The browser itself reports the 401 answers; nothing else is there.
        assert all("401" in line for line in console)

    play(scene, admin={"token": TOKEN}, limit_s=150)
