"""The simulator's speed is measured; the number itself depends on the machine."""

import numba
import pytest

from fairlead.bench import simulator


def test_what_is_measured_and_that_threads_are_put_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulator, "CLUSTERS", 2)
    monkeypatch.setattr(simulator, "REQUESTS", 50)
    threads, seen = numba.get_num_threads(), []
    result = simulator.measure(0.1, lambda what, done, total: seen.append((what, done / total)))
    assert result["requests_per_s_heuristic"] > 0
    assert result["requests_per_s_learned"] > 0
    assert result["cores"] == 1 and result["num_replicas"] == 4
    assert ("heuristic", 1.0) in seen and ("learned", 1.0) in seen
    assert numba.get_num_threads() == threads
