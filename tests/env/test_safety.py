"""Safety monitors: each limit is crossed when it should be, counted, and may end an episode."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fairlead.env.reward_config import SafetyConfig
from fairlead.env.safety import MONITORS, Monitors
from fairlead.env.single import RouterEnv
from fairlead.env.vector import RouterVectorEnv
from fairlead.workload.scenario import load_scenario

from .test_hybrid import interval

NONE: NDArray[np.int64] = np.zeros(1, np.int64)


def crossed(monitors: Monitors, *args: object) -> set[str]:
    flags = monitors.crossed(*args)  # type: ignore[arg-type]
    return {name for name, row in zip(MONITORS, flags, strict=True) if row[0]}


def test_a_latency_cutoff_is_twice_the_objective_by_default() -> None:
    monitors = Monitors(SafetyConfig(), np.array([1.0]))
    assert crossed(monitors, interval([9.0], ttft=[1.9]), NONE) == set()
    assert crossed(monitors, interval([9.0], ttft=[2.1]), NONE) == {"latency_cutoff"}
    waiting = interval([])._replace(oldest_wait_s=np.array([2.1]))
    assert crossed(monitors, waiting, NONE) == {"latency_cutoff"}


def test_the_p99_of_scheduling_delays_is_watched() -> None:
    monitors = Monitors(SafetyConfig(window=50, latency_cutoff=1e9), np.array([1.0]))
    assert crossed(monitors, interval([9.0] * 49, ttft=[6.0] * 49), NONE) == set()
    assert crossed(monitors, interval([9.0], ttft=[6.0]), NONE) == {"scheduling_delay_p99"}
    assert crossed(monitors, interval([9.0] * 50, ttft=[4.0] * 50), NONE) == set()


def test_a_request_that_starves_while_others_are_served_is_found() -> None:
    monitors = Monitors(SafetyConfig(starvation_s=30.0, latency_cutoff=100.0), np.array([1.0]))
    waiting = interval([])._replace(oldest_wait_s=np.array([31.0]))
    assert crossed(monitors, waiting, NONE) == set()  # a jam for all alike is no starvation
    assert crossed(monitors, waiting._replace(overtaken=np.array([True])), NONE) == {"starvation"}


def test_a_queue_that_grows_window_after_window_is_found() -> None:
    monitors = Monitors(SafetyConfig(window=10, queue_growth=1.25), np.array([1.0]))
    found = []
    for window in range(6):
        for _ in range(10):
            found.append(crossed(monitors, interval([], in_flight=(2**window, 0)), NONE))
    assert found[29:39] == [set()] * 10
    assert found[39] == {"queue_growth"}
    steady = Monitors(SafetyConfig(window=10), np.array([1.0]))
    assert all(not crossed(steady, interval([], in_flight=(50, 50)), NONE) for _ in range(100))


def test_a_full_kv_cache_is_found_by_its_preemptions() -> None:
    monitors = Monitors(SafetyConfig(), np.array([1.0]))
    assert crossed(monitors, interval([]), np.array([3])) == {"kv_exhaustion"}
    assert crossed(monitors, interval([]), np.array([3])) == set()


def one_sided(env: RouterVectorEnv, steps: int) -> NDArray[np.float64]:
    """Everything to one replica: (steps, K) rewards."""
    env.reset(seed=0)
    return np.array([env.step(np.zeros(env.num_envs, np.int64))[1] for _ in range(steps)])


def test_crossings_are_counted_and_by_default_change_nothing() -> None:
    scenario = [load_scenario("chat-equal")]
    env = RouterVectorEnv(scenario, num_envs=2, group=2, episode_requests=300, load=(0.9, 0.9))
    rewards = one_sided(env, 299)
    counts, _ = env.take_statistics()
    assert counts["safety/latency_cutoff"] > 10
    assert counts["performance/ttft_p90_s"] > 2.0
    again, _ = env.take_statistics()
    assert again["safety/latency_cutoff"] == 0
    punished = RouterVectorEnv(
        *(scenario,),
        num_envs=2,
        group=2,
        episode_requests=300,
        load=(0.9, 0.9),
        safety=SafetyConfig(penalty=100.0),
    )
    difference = rewards - one_sided(punished, 299)
    assert set(difference.round(6).ravel()) == {0.0, 100.0}


def test_a_limit_can_end_the_episode_with_a_penalty() -> None:
    env = RouterEnv("chat-equal", load=0.9, safety=SafetyConfig(end_episode=True, penalty=50.0))
    env.reset(seed=0)
    for _ in range(1000):
        observation, reward, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            break
    assert terminated and not truncated
    assert reward < -50.0
    assert observation[0, 0] > 0  # the state that it ended in
    assert env.step(0)[0][0, 0] < observation[0, 0]  # and the next episode began empty


@pytest.mark.parametrize("bad", [{"queue_growth": 0}, {"window": 5}, {"penalty": -1}])
def test_limits_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        SafetyConfig.model_validate(bad)
