"""Two real vLLM servers for all tests of this folder; `make test-vllm` installs what they need."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vllm.servers import Process, gateway, vllm_server


@pytest.fixture(scope="session")
def environment() -> Path:
    """The environment that `tools/vllm_cpu/install.py` made, with the model in it."""
    return Path(os.environ["FAIRLEAD_VLLM"])


@pytest.fixture(scope="session")
def servers(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    logs = tmp_path_factory.mktemp("vllm")
    both = [vllm_server(environment, logs / f"vllm-{i}.log") for i in range(2)]
    try:
        for server in both:
            server.start()
        for server in both:
            server.wait_until_ready()
        yield both
    finally:
        for server in both:
            server.stop()


@pytest.fixture(scope="session")
def front(servers: list[Process], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The gateway before both servers."""
    process = gateway(
        [server.url for server in servers],
        tmp_path_factory.mktemp("gateway") / "gateway.log",
        *("--policy", "least_work", "--set", "health.interval=0.2", "--set", "scrape.interval=0.2"),
    )
    process.start()
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.stop()
