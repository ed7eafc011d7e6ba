"""Settings that every test shares: one thread, no display, and what is skipped."""

import os
import shutil
from importlib.util import find_spec

import pytest

# Before NumPy or torch is imported; subprocesses inherit it. Two cores are shared by the whole suite.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "agg"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
"""Programs that are Chromium, as distributions call it."""


def find_chromium() -> str | None:
    """The path of a Chromium, if there is one on PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The browser of tests that are marked `browser`."""
    return find_chromium()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need Vidur, real vLLM servers or a browser are skipped where these are not installed."""
    missing = {}
    if find_chromium() is None:
        missing["browser"] = f"there is no Chromium on PATH (looked for {', '.join(BROWSERS)})"
    if find_spec("vidur") is None:
        missing["vidur"] = "the simulator Vidur is not installed: make test-vidur"
    if "FAIRLEAD_VLLM" not in os.environ:
        missing["vllm"] = "no environment with vLLM is named: make test-vllm"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
