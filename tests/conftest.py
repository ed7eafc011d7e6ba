"""Settings that every test shares: one thread, no display, and what is skipped."""

import os
from importlib.util import find_spec

import pytest

# Before NumPy or torch is imported; subprocesses inherit it. Two cores are shared by the whole suite.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "agg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with the marker `vidur` are skipped where that simulator is not installed."""
    wanted = [item for item in items if item.get_closest_marker("vidur")]
    if wanted and find_spec("vidur") is None:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="the simulator Vidur is not installed: make test-vidur"))
