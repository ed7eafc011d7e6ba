"""What a probe finds, of emulated servers and of such as offer less."""

import asyncio

import yaml
from tests.emulated import emulated

from fairlead.serve.probe import SCRAPED, Finding, probe, read_page, suggest
from fairlead.serve.settings import BackendSettings, parse_settings
from fairlead.workload.scenario import load_scenario

DECLARED = {"speed", "prefill_tokens_per_s", "decode_iteration_s"}


def ask(*urls: str, **settings) -> list[Finding]:
    backends = [BackendSettings.model_validate({"url": url, **settings}) for url in urls]
    return asyncio.run(probe(backends, 2.0))


def test_an_emulated_cluster():
    with emulated(load_scenario("chat-unequal"), model="tiny") as urls:
        found = ask(*urls)
    assert [each.url for each in found] == urls and not any(each.error for each in found)
    for each in found:
        assert each.healthy and each.version == "0.32.0" and each.load == 0
        assert set(each.models) == {"tiny"} and (each.models["tiny"] or 0) > 1000
        assert each.block_size and each.num_gpu_blocks
        assert each.kv_capacity_tokens == each.block_size * each.num_gpu_blocks
        assert each.prefix_caching is False and each.max_num_seqs is None
        assert not each.missing_metrics and each.metrics == [*SCRAPED.values(), "vllm:cache_config_info"]
        assert each.orca == ["num_requests_waiting", "kv_cache_usage_perc"]
        assert set(each.columns) == {*DECLARED, "max_num_seqs", "expected_prefix_hit_tokens"}
    settings = parse_settings(yaml.safe_load(suggest(found)), "suggested")
    assert [b.kv_capacity_tokens for b in settings.backends] == [f.kv_capacity_tokens for f in found]
    assert settings.prefixes.chunks == 0 and settings.scrape.orca


def test_what_is_declared_is_not_missing():
    declared = {"speed": 1.0, "prefill_tokens_per_s": 1e4, "decode_iteration_s": 0.01, "max_num_seqs": 8}
    with emulated(load_scenario("uniform-lengths")) as urls:
        (found,) = ask(urls[0], **declared)
    assert set(found.columns) == {"expected_prefix_hit_tokens"}


def test_a_server_that_is_not_there_is_an_error_and_not_suggested():
    (found,) = ask("http://127.0.0.1:1")
    assert "no connection" in found.error and not found.healthy
    assert suggest([found]) == ""


async def serve(pages: dict[str, bytes]) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body = pages.get(path)
        status = b"200 OK" if body is not None else b"404 Not Found"
        head = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(body or b""))
        writer.write(head + (body or b""))
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def ask_pages(pages: dict[str, bytes]) -> Finding:
    async def main() -> Finding:
        async with await serve(pages) as server:
            port = server.sockets[0].getsockname()[1]
            return (await probe([BackendSettings(url=f"http://127.0.0.1:{port}")], 2.0))[0]

    return asyncio.run(main())


def test_a_server_that_offers_the_api_alone():
    found = ask_pages({"/health": b"", "/v1/models": b'{"data":[{"id":"m"}]}'})
    assert not found.error and found.models == {"m": None}
    assert found.orca is None and found.load is None and found.version is None
    assert found.metrics == [] and set(found.columns) == {
        *DECLARED,
        "scraped_*",
        "kv_capacity_tokens",
        "max_num_seqs",
    }
    settings = parse_settings(yaml.safe_load(suggest([found])), "suggested")
    assert settings.scrape.interval is None


def test_something_else_than_an_openai_server_is_an_error():
    assert "not an OpenAI-compatible" in ask_pages({"/health": b"", "/v1/models": b"<html>"}).error
    assert ask_pages({"/health": b""}).error == "/v1/models answers with 404"


def test_engines_add_up_and_impossible_values_are_told():
    page = """vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="100",engine="0"} 1.0
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="50",engine="1"} 1.0
"""
    found = Finding("http://a")
    read_page(found, page.encode())
    assert (found.block_size, found.num_gpu_blocks, found.kv_capacity_tokens) == (16, 150, 2400)
    assert found.prefix_caching is True
    assert found.missing_metrics == ["vllm:num_preemptions_total", "vllm:prefix_cache_queries_total"]
    wrong = Finding("http://a")
    read_page(wrong, page.replace("} 0.5", "} 7").encode())
    assert "cannot be used" in wrong.columns["scraped_*"]
