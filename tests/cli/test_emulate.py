"""`fairlead emulate` as a process."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest


def test_it_announces_its_endpoints_serves_and_ends_on_sigterm():
    command = [
        sys.executable,
        "-m",
        "fairlead",
        "emulate",
        "--scenario",
        "chat-unequal",
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            text += line
        told = json.loads(text)
        assert (told["scenario"], told["model"], told["speed"]) == ("chat-unequal", "llama-3-8b", 1.0)
        for url in told["endpoints"]:
            with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(told["endpoints"]) == 4


def test_a_taken_port_is_one_line_and_exit_code_2():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "fairlead", "emulate", "-s", "chat-unequal", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot listen on") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--speed", "0"], ["--port", "70000"]])
def test_options_out_of_range_are_refused(options):
    command = [sys.executable, "-m", "fairlead", "emulate", "-s", "chat-unequal", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error:")
