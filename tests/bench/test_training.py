"""The speed of training is measured on the real thing, in small."""

import pytest

from fairlead.bench import training


def test_decisions_are_counted_and_the_time_is_split(monkeypatch: pytest.MonkeyPatch):
    small = training.SETTINGS.environment.model_copy(update={"num_envs": 4, "group": 2})
    monkeypatch.setattr(training, "SETTINGS", training.SETTINGS.model_copy(update={"environment": small}))
    monkeypatch.setattr(training, "LEAST_ITERATIONS", 1)
    seen: list[str] = []
    result = training.measure(0.0, lambda what, done, total: seen.append(what))
    assert result["decisions"] == 4 * 256
    assert result["decisions_per_s"] == pytest.approx(result["decisions"] / result["seconds"])
    assert {"simulate", "forward", "learn"} <= set(result["seconds_by_phase"])
    assert 0 < sum(result["seconds_by_phase"].values()) <= 1.1 * result["seconds"]
    assert {"warming up", "training"} == set(seen)
