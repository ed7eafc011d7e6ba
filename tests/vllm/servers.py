"""Real vLLM servers on the CPU, and any other server of ours, as child processes."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

READY_S = 360.0
"""Two servers that start at once on two busy cores take up to 80 s; a cold file cache more."""
_PORTS = 3  # tried, should another process take the one that was free
_PR_SET_PDEATHSIG = 1

# What vLLM reads from its environment on a CPU without a network.
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# 4 MB of KV cache are 256 blocks of 32 tokens: few enough that a test can fill them.
_VLLM_OPTIONS = (
    *("--dtype", "bfloat16", "--max-model-len", "4096", "--enforce-eager", "--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", "4M", "--block-size", "32", "--enable-server-load-tracking"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Called in a child: should the tests be killed, so is the server (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A server as a child process in a group of its own, with its output in a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        """`command` says `{port}` where the port belongs."""
        self.log = log
        self.port = free_port()
        self._command = command
        self._environment = {**os.environ, **environment}
        self._child: subprocess.Popen[bytes] | None = None
        self._was_ready = False

    @property
    def url(self) -> str:
        """Where it listens; settled once it is ready."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [word.format(port=self.port) for word in self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait_until_ready(self) -> None:
        assert self._child is not None
        deadline = time.monotonic() + READY_S
        ports = 1
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                if self._was_ready or ports == _PORTS or not self._lost_its_port():
                    break
                ports += 1
                self.port = free_port()
                self.start()
            with contextlib.suppress(OSError):
                get(f"{self.url}/health")
                self._was_ready = True
                return
            time.sleep(0.2)
        code = self._child.poll()
        ended = f"ended with code {code}" if code is not None else f"is not ready after {READY_S:g} s"
        log = self.log.read_text(errors="replace")[-6000:]
        raise AssertionError(f"{' '.join(self._command)} {ended}; the end of its log:\n{log}")

    def _lost_its_port(self) -> bool:
        log = self.log.read_text(errors="replace")[-6000:].lower()
        return "address already in use" in log or "cannot listen" in log

    def kill(self) -> None:
        """As `kill -9` would."""
        assert self._child is not None
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def stop(self) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


def vllm_server(environment: Path, log: Path) -> Process:
    command = [str(environment / "bin" / "vllm"), "serve", str(environment / "model")]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "{port}", *_VLLM_OPTIONS]
    return Process(command, log, _VLLM_ENVIRONMENT)


def gateway(backends: list[str], log: Path, *options: str) -> Process:
    command = [sys.executable, "-m", "fairlead", "serve", "--port", "{port}", *options]
    for url in backends:
        command += ["--backend", url]
    return Process(command, log, {})


def vllm_bench(environment: Path, url: str, result: Path) -> dict[str, Any]:
    """What `vllm bench serve` reports of 40 streamed completions."""
    command = [str(environment / "bin" / "vllm"), "bench", "serve", "--backend", "openai", "--base-url", url]
    command += ["--model", "tiny", "--tokenizer", str(environment / "model"), "--disable-tqdm"]
    command += ["--dataset-name", "random", "--random-input-len", "100", "--random-output-len", "20"]
    command += ["--num-prompts", "40", "--request-rate", "10", "--ignore-eos", "--seed", "1"]
    command += ["--save-result", "--result-dir", str(result.parent), "--result-filename", result.name]
    done = subprocess.run(
        command, env={**os.environ, **_VLLM_ENVIRONMENT}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    """Status, headers and JSON of an answer that is not streamed."""
    head = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def stream(url: str, body: dict[str, Any]) -> Generator[Any, None, None]:
    """The server-sent events of an answer: JSON, but for the last, `[DONE]`; closing it leaves the server."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({**body, "stream": True}).encode(), head)
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                text = line.removeprefix(b"data: ").decode().strip()
                yield text if text == "[DONE]" else json.loads(text)


def metric(page: str, name: str) -> float:
    """The sum of a metric over its labels."""
    rows = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    assert rows, f"there is no {name}"
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    """Whether `condition` becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False
