"""The hybrid reward: each component, what it can express, what is logged about it."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fairlead.env.hybrid import COMPONENTS, Hybrid, Objectives, imbalance, latency_penalty, low_latency_bonus
from fairlead.env.interval import Interval
from fairlead.env.reward_config import HybridReward, LatencyPenalty
from fairlead.env.vector import RouterVectorEnv
from fairlead.policy.heuristics import Heuristic
from fairlead.workload.scenario import load_scenario

DEMO = [load_scenario("chat-equal"), load_scenario("chat-unequal")]
ONE = Objectives(np.array([[5.0, 1.0]]), np.array([1.0]), np.array([0.05]))


def interval(
    e2e: list[float],
    *,
    ttft: list[float] | None = None,
    in_flight: tuple[int, ...] = (1, 1),
    before: tuple[int, ...] = (0, 1),
    action: int = 0,
    elapsed: float = 1.0,
) -> Interval:
    """One cluster, in which requests with these latencies completed."""
    n = len(e2e)
    first = np.array(ttft if ttft is not None else [0.1] * n)
    return Interval(
        elapsed_s=np.array([elapsed]),
        actions=np.array([action]),
        in_flight_before=np.array([before]),
        in_flight=np.array([in_flight]),
        waiting=np.array([0]),
        oldest_wait_s=np.zeros(1),
        overtaken=np.zeros(1, np.bool_),
        cluster=np.zeros(n, np.int64),
        e2e_s=np.array(e2e),
        ttft_s=first,
        tpot_s=np.full(n, 0.02),
        delay_s=first,
        output_tokens=np.full(n, 10),
    )


def parts(
    config: HybridReward, x: Interval, cost: float = 0.0, shadow: float | None = None
) -> dict[str, float]:
    """The raw components of a first interval."""
    raw = Hybrid(config, ONE).components(x, np.array([cost]), None if shadow is None else np.array([shadow]))
    return dict(zip(COMPONENTS, raw[:, 0].tolist(), strict=True))


def total(config: HybridReward, x: Interval, cost: float = 0.0, shadow: float | None = None) -> float:
    hybrid = Hybrid(config, ONE)
    raw = hybrid.components(x, np.array([cost]), None if shadow is None else np.array([shadow]))
    return float(hybrid.total(raw)[1][0])


NOTHING: dict[str, Any] = {
    "sojourn_weight": 0,
    "absolute_weight": 0,
    "delta_weight": 0,
    "imbalance_weight": 0,
    "latency_penalty": {"scale": 0},
}


def only(**weights: Any) -> HybridReward:
    """A reward of these components and no others."""
    return HybridReward.model_validate(NOTHING | weights)


def test_with_all_weights_at_zero_nothing_is_rewarded() -> None:
    assert total(only(), interval([1.0, 9.0]), cost=3.0) == 0.0


def test_the_linear_penalty_is_proportional_and_never_saturates() -> None:
    config = LatencyPenalty(shape="linear", scale=0.5)
    costs = latency_penalty(np.array([0.0, 6.0, 60.0, 600.0]), 6.0, config)
    np.testing.assert_allclose(costs, [0.0, 0.5, 5.0, 50.0])


def test_pitfall_10_bad_and_terrible_cost_different_amounts_by_default() -> None:
    """No clip and no cap unless asked for; where there is one, the saturated share says so."""
    config = HybridReward()
    assert config.clip is None and config.latency_penalty.cap is None
    assert total(config, interval([60.0])) - total(config, interval([600.0])) > 10.0
    clipped = only(latency_penalty={"scale": 1.0}, clip=(-4.0, 8.0))
    hybrid = Hybrid(clipped, ONE)
    raw = hybrid.components(interval([600.0]), np.zeros(1), None)
    scaled, reward, saturated = hybrid.total(raw)
    assert (reward[0], saturated[0]) == (-4.0, True)
    assert scaled.sum() == pytest.approx(-100.0)  # what is logged is what there was before the clip


def test_the_logistic_penalty_is_centred_beyond_the_objective_and_shallow() -> None:
    config = LatencyPenalty(shape="logistic", scale=4.0, steepness=2.0, centre=1.3)
    costs = latency_penalty(np.array([6.0, 7.8, 12.0]), 6.0, config)
    assert costs[1] == pytest.approx(2.0)
    assert costs[0] < 2.0 < costs[2] < 4.0
    steep = latency_penalty(
        np.array([6.6]), 6.0, config.model_copy(update={"steepness": 40.0, "centre": 1.0})
    )
    assert steep[0] > 3.9  # the documents' old setting: all of it at 110 % of the objective


def test_the_piecewise_penalty_goes_on_beyond_the_threshold() -> None:
    config = LatencyPenalty(shape="piecewise", scale=1.0, excess_slope=3.0)
    np.testing.assert_allclose(latency_penalty(np.array([3.0, 6.0, 12.0]), 6.0, config), [0.5, 1.0, 4.0])


def test_a_cap_limits_one_request_not_the_interval() -> None:
    config = only(latency_penalty={"scale": 1.0, "cap": 2.0})
    assert total(config, interval([60.0, 60.0])) == pytest.approx(-4.0)


@pytest.mark.parametrize(("measure", "expected"), [("std", 2.0 / 4.0), ("range", 4.0 / 4.0)])
def test_imbalance_is_a_spread(measure: str, expected: float) -> None:
    assert imbalance(np.array([[4, 0]]), measure)[0] == pytest.approx(expected)
    assert imbalance(np.array([[3, 3]]), measure)[0] == 0.0


def test_pitfall_11_no_component_explodes_in_an_almost_empty_cluster() -> None:
    """The coefficient of variation of one request on 64 replicas is 8; this measure stays below one."""
    one = np.zeros((1, 64), np.int64)
    one[0, 0] = 1
    for measure in ("std", "range"):
        assert imbalance(one, measure)[0] < 0.02


def test_pitfall_11_every_component_is_logged_with_its_share_of_the_variance() -> None:
    env = RouterVectorEnv(
        DEMO, num_envs=4, group=2, episode_requests=60, reward=HybridReward(imbalance_weight=1000.0)
    )
    env.reset(seed=0)
    for t in range(50):
        env.step(np.full(4, t % 3 % 2))
    numbers, totals = env.take_statistics()
    shares = {c: numbers[f"reward/{c}/variance_share"] for c in COMPONENTS}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["imbalance_penalty"] > 0.9  # found out at once
    assert totals.shape == (200,)
    assert numbers["reward/saturated"] == 0.0


def test_the_absolute_score_weighs_throughput_against_latency() -> None:
    config = only(absolute_weight=1.0, throughput_weight=2.0, latency_weight=1.0, latency_threshold_s=4.0)
    assert parts(config, interval([2.0]))["absolute_score"] == pytest.approx(2.0 - 0.5)
    assert parts(config, interval([]))["absolute_score"] == 0.0


def test_the_throughput_target_adapts_to_the_offered_load_or_is_fixed() -> None:
    for target, throughput in (("offered", 1.0), (2.0, 0.5), (0.05, 1.0)):
        config = only(latency_weight=0, throughput_weight=1.0, throughput_target=target)
        # One arrival and one completion in one second.
        assert parts(config, interval([2.0]))["absolute_score"] == pytest.approx(throughput)


def test_the_loss_from_a_dip_in_throughput_can_be_capped() -> None:
    config = only(latency_weight=0, throughput_weight=1.0, throughput_target=100.0, throughput_loss_cap=0.1)
    assert parts(config, interval([2.0]))["absolute_score"] == pytest.approx(0.9)


def test_the_delta_score_follows_changes_and_forgets() -> None:
    config = only(delta_weight=1.0, alpha=0.1)
    hybrid = Hybrid(config, ONE)
    deltas = []
    for latency in [2.0] * 3 + [20.0] * 60:
        raw = hybrid.components(interval([latency]), np.zeros(1), None)
        deltas.append(raw[COMPONENTS.index("delta_score"), 0])
    assert deltas[:3] == [0.0, 0.0, 0.0]
    assert min(deltas) < -0.2
    assert abs(deltas[-1]) < 0.1 * abs(min(deltas))


def test_low_latency_is_rewarded_more_the_lower_it_is() -> None:
    np.testing.assert_allclose(
        low_latency_bonus(np.array([0.0, 1.5, 3.0, 9.0]), 6.0, 0.5), [1.0, 0.5, 0.0, 0.0]
    )
    # 20 % less latency than round robin's 5 s may be worth +3.5 rather than +0.8.
    config = only(low_latency_bonus=17.5, latency_threshold_s=5.0)
    assert total(config, interval([4.0])) == pytest.approx(3.5)
    assert total(config, interval([5.0])) == 0.0


def test_tails_are_judged_window_by_window() -> None:
    config = only(p99_bonus=2.0, p95_improvement_weight=10.0, tail_window=10, latency_threshold_s=4.0)
    hybrid = Hybrid(config, ONE)
    rewards = []
    for latency in (3.0, 1.5, 9.0):
        raw = hybrid.components(interval([latency] * 10), np.zeros(1), None)
        rewards.append(float(hybrid.total(raw)[1][0]))
    assert rewards == pytest.approx([2.0, 2.0 + 10 * 0.5, 10 * -5.0])


def test_a_moving_average_of_its_own_past_can_be_the_baseline() -> None:
    hybrid = Hybrid(only(baseline_weight=1.0, baseline="moving_average", alpha=0.5), ONE)
    found = [
        float(hybrid.total(hybrid.components(interval([]), np.array([cost]), None))[1][0])
        for cost in (4.0, 2.0, 2.0)
    ]
    assert found == pytest.approx([0.0, 2.0, 1.0])


def test_the_shadow_is_what_the_reward_is_relative_to() -> None:
    assert total(only(baseline_weight=2.0), interval([]), cost=3.0, shadow=5.0) == pytest.approx(4.0)


def test_good_requests_and_served_requests_are_counted() -> None:
    x = interval([2.0, 2.0, 2.0], ttft=[0.5, 2.0, 0.9])
    assert total(only(goodput_weight=1.0), x) == 2.0
    assert total(only(served_weight=0.5), x) == 1.5


def test_shaping_is_a_potential_and_cannot_be_farmed() -> None:
    """Going there and back again earns nothing when nothing is discounted."""
    hybrid = Hybrid(only(queue_variance_weight=1.0, potential_horizon_s=1e12), ONE)
    earned = 0.0
    for load in ((5, 0), (9, 1), (5, 0), (0, 0)):
        raw = hybrid.components(interval([], in_flight=load), np.zeros(1), None)
        earned += float(hybrid.total(raw)[1][0])
    assert earned == pytest.approx(0.0, abs=1e-9)


def test_choosing_the_least_busy_replica_can_be_rewarded() -> None:
    config = only(least_busy_bonus=1.0)
    assert total(config, interval([], before=(0, 1), action=0)) == 1.0
    assert total(config, interval([], before=(0, 1), action=1)) == 0.0


def test_the_clip_may_be_asymmetric_but_not_backwards() -> None:
    config = only(served_weight=100.0, clip=(-4.0, 8.0))
    assert total(config, interval([1.0])) == 8.0
    with pytest.raises(ValidationError, match="runs backwards"):
        HybridReward(clip=(8.0, -4.0))


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValidationError, match="'lro' is no heuristic; did you mean lor"):
        HybridReward(baseline="lro")


def returns(router: str, config: HybridReward, steps: int = 250) -> tuple[float, dict[str, float]]:
    """Mean reward per decision of a heuristic, and what was logged."""
    env = RouterVectorEnv(
        DEMO,
        num_envs=8,
        group=2,
        episode_requests=steps + 1,
        load=(0.8, 0.8),
        reward=config,
        split="validate",
    )
    env.reset(seed=1)
    heuristic = Heuristic(router)
    heuristic.reset(8, 4, 0)
    earned = 0.0
    for _ in range(steps):
        _, reward, *_ = env.step(heuristic.route(env.clusters.view))
        earned += float(reward.mean())
    return earned / steps, env.take_statistics()[0]


def test_good_routing_earns_a_positive_reward_and_there_is_room_above_round_robin() -> None:
    config = HybridReward(
        sojourn_weight=0.0, goodput_weight=1.0, low_latency_bonus=1.0, latency_threshold_s=8.0
    )
    good, _ = returns("least_work", config)
    fair, _ = returns("round_robin", config)
    assert good > 0.5
    assert good > fair + 0.03


def test_a_router_earns_nothing_against_its_own_shadow_and_less_than_a_better_one() -> None:
    config = only(baseline_weight=1.0, baseline="least_work")
    same, _ = returns("least_work", config)
    worse, logged = returns("round_robin", config)
    assert same == pytest.approx(0.0, abs=0.2)
    assert worse < same - 0.2
    assert logged["reward/baseline/raw_mean"] == pytest.approx(worse)
