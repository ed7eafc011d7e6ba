import time

import pytest

from fairlead.train.profiler import Profiler


def test_phases_exclude_what_is_nested_in_them():
    profiler = Profiler()
    with profiler.phase("learn"):
        time.sleep(0.02)
        with profiler.phase("simulate"):
            time.sleep(0.05)
    time.sleep(0.05)
    assert 0.015 < profiler.seconds["learn"] < profiler.seconds["simulate"]
    assert profiler.total == pytest.approx(sum(profiler.seconds.values()))
    assert list(profiler.shares()) == ["simulate", "learn"]
    assert sum(profiler.shares().values()) == pytest.approx(1)
    assert profiler.summary().startswith("simulate ")


def test_a_phase_ends_with_an_error():
    profiler = Profiler()
    with pytest.raises(KeyError), profiler.phase("copy"):
        raise KeyError
    seconds = profiler.seconds["copy"]
    time.sleep(0.01)
    with profiler.phase("learn"):
        pass
    assert profiler.seconds["copy"] == seconds


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="simulate"), Profiler().phase("lunch"):
        pass
