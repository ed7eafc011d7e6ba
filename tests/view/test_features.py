"""The features: finite, free of replica indices, alive in training, blind to the future."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import fairlead.view
from fairlead.env.run import run
from fairlead.env.vector import RouterVectorEnv
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view import schema
from fairlead.view.features import FEATURES, NUM_FEATURES, SCHEMA_HASH, bounded, features_batch
from fairlead.view.preference import DEFAULT_FAVOR, DIAL, check_favor, weights_of
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import generate, load_scenario
from fairlead.workload.suites import load_scenarios


def test_names_and_columns_fit_together() -> None:
    assert len(set(FEATURES)) == NUM_FEATURES
    names = [column.name for column in schema.REPLICA_COLUMNS]
    assert [names[getattr(schema, name.upper())] for name in names] == names
    names = [column.name for column in schema.REQUEST_COLUMNS]
    assert [names[getattr(schema, name.upper())] for name in names] == names


def test_the_schema_hash_changes_with_the_features() -> None:
    assert schema.schema_hash(FEATURES) != schema.schema_hash(FEATURES[1:])


def test_the_schema_hash_changes_with_what_the_dial_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy trained for 720 times the tail at favor 1 must not be asked for 5760 times by that number."""
    views_alone = schema.schema_hash(())
    monkeypatch.setattr(schema, "DIAL", (*DIAL[:2], 720.0, DIAL[3]))
    assert schema.schema_hash(FEATURES) != SCHEMA_HASH
    assert schema.schema_hash(()) == views_alone, "logged views hold no favor"


def test_features_do_not_know_replica_indices() -> None:
    draw = np.random.default_rng(0)
    view = View(
        draw.uniform(0.1, 50, (5, 6, NUM_REPLICA_COLUMNS)), draw.uniform(1, 500, (5, NUM_REQUEST_COLUMNS))
    )
    order = draw.permutation(6)
    plain = features_batch(view, 0.3)
    permuted = features_batch(View(view.replicas[:, order], view.request), 0.3)
    np.testing.assert_array_equal(plain[:, order], permuted)


def test_features_do_not_know_how_fast_the_hardware_is() -> None:
    """A cluster that does everything three times as fast looks the same: so the same policy fits it."""
    draw = np.random.default_rng(0)
    view = View(
        draw.uniform(0.1, 50, (5, 6, NUM_REPLICA_COLUMNS)), draw.uniform(1, 500, (5, NUM_REQUEST_COLUMNS))
    )
    faster = View(view.replicas.copy(), view.request.copy())
    for columns, values in zip(
        (schema.REPLICA_COLUMNS, schema.REQUEST_COLUMNS), (faster.replicas, faster.request), strict=True
    ):
        for i, column in enumerate(columns):
            if column.unit == "s":
                values[..., i] /= 3.0
            elif column.unit == "tokens/s":
                values[..., i] *= 3.0
    assert not np.array_equal(faster.replicas, view.replicas)
    np.testing.assert_allclose(features_batch(faster, 0.3), features_batch(view, 0.3), rtol=1e-5)


def test_pitfall_12_every_feature_varies_in_training() -> None:
    """Constant inputs teach nothing; the request's own size and the remaining work are among them.

    Over the whole suite: `available`, say, varies only where replicas fail.
    """
    scenarios = load_scenarios("suite/standard")
    count = 2 * len(scenarios)
    env = RouterVectorEnv(scenarios, num_envs=count, group=2, favor=(0.0, 1.0))
    observation, _ = env.reset(seed=1)
    draw = np.random.default_rng(0)
    seen = [observation]
    for _ in range(300):
        observation, *_ = env.step(draw.integers(0, 4, count))
        seen.append(observation)
    spread = np.concatenate(seen).reshape(-1, NUM_FEATURES).std(0)
    constant = [name for name, s in zip(FEATURES, spread, strict=True) if s < 1e-3]
    assert constant == []
    assert {"prompt_tokens", "expected_remaining_bounded"} <= set(FEATURES)


def test_pitfall_13_the_view_has_no_true_output_length() -> None:
    names = [c.name for c in (*schema.REPLICA_COLUMNS, *schema.REQUEST_COLUMNS)]
    assert [n for n in names if "output" in n] == ["expected_output_tokens"]
    for source in Path(fairlead.view.__file__).parent.glob("*.py"):
        assert not re.search(r"\boutput_tokens\b", source.read_text().replace("expected_output_tokens", ""))


@pytest.mark.parametrize("router", ["least_work", "least_kv", "weighted_lor"])
def test_pitfall_13_decisions_do_not_depend_on_lengths_not_seen_yet(router: str) -> None:
    """Two worlds with the same arrivals and other outputs look alike until the first request finishes."""
    scenario = load_scenario("chat-equal")
    first = generate(scenario, requests=200, rate=20.0, seed=0, split="evaluate")
    outputs = np.random.default_rng(1).permutation(first.output_tokens) + 40
    worlds = [
        Requests(first.arrival_s, first.prompt_tokens, first.output_tokens + 40),
        Requests(first.arrival_s, first.prompt_tokens, outputs),
    ]
    views, ends = [], []
    for world in worlds:
        clusters = Clusters([build_fleet(scenario)], [world])
        policy = Heuristic(router)
        seen = []
        for _ in range(200):
            view = clusters.observe()
            seen.append(np.concatenate([view.replicas[0].ravel(), view.request[0]]))
            clusters.route(policy.route(view))
        clusters.drain()
        views.append(np.array(seen))
        ends.append(clusters.outcomes(0).finish_s.min())
    before = int(np.searchsorted(first.arrival_s, min(ends)))
    assert before > 10
    np.testing.assert_array_equal(views[0][:before], views[1][:before])
    assert (views[0] != views[1]).any()


def test_the_dial() -> None:
    assert weights_of(0.0) == (0.5, 1.0, 0.0)
    assert weights_of(0.5) == pytest.approx((0.5 + 159.5 / 16, 1.0, 360.0))
    assert weights_of(1.0) == (160.0, 1.0, 5760.0)
    along = np.array([weights_of(favor) for favor in np.linspace(0.0, 1.0, 101)])
    assert (np.diff(along[:, [0, 2]], axis=0) > 0).all() and (along[:, 1] == 1.0).all()
    # At the default long waits count for much, beside the end-to-end latency.
    assert str(weights_of(DEFAULT_FAVOR)) == "10.47 TTFT : 1 E2E : 360 tail"
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(Exception, match=r"not in \[0, 1\]"):
            check_favor(bad)


def test_the_estimated_cost_by_hand() -> None:
    """Two replicas: one waits .3 s for its prompts and decodes for others, one is idle and half as fast."""
    replicas = np.zeros((1, 2, NUM_REPLICA_COLUMNS))
    replicas[0, :, schema.AVAILABLE] = 1.0
    replicas[0, :, schema.KV_CAPACITY_TOKENS] = replicas[0, :, schema.MAX_NUM_SEQS] = 100.0
    replicas[0, :, schema.PREFILL_TOKENS_PER_S] = [1000.0, 500.0]
    replicas[0, :, schema.DECODE_ITERATION_S] = [0.01, 0.02]
    replicas[0, :, schema.ITL_EWMA_S] = [0.015, 0.0]
    replicas[0, :, schema.IN_FLIGHT] = [6.0, 0.0]
    replicas[0, :, schema.AWAITING_FIRST_TOKEN] = [2.0, 0.0]
    replicas[0, :, schema.PENDING_PREFILL_TOKENS] = [300.0, 0.0]
    request = np.zeros((1, NUM_REQUEST_COLUMNS))
    request[0, schema.PROMPT_TOKENS] = 200.0
    request[0, schema.EXPECTED_OUTPUT_TOKENS] = 100.0
    request[0, schema.TTFT_TAIL_S] = 0.45
    w_ttft, w_e2e, w_tail = weights_of(0.5)
    first = np.array([0.3 + 0.2, 0.4])
    decode = np.array([100 * (0.03 - 0.01), 100 * 0.02])
    delayed = np.array([4 * 0.2, 0.0])
    tail = w_tail * np.maximum(first - 0.45, 0.0)
    cost = w_ttft * first + w_e2e * (first + decode + delayed) + tail
    found = features_batch(View(replicas, request), 0.5)[0]
    np.testing.assert_allclose(found[:, FEATURES.index("tail_cost")], np.log1p(tail), rtol=1e-6)
    above = found[:, FEATURES.index("cost_above_least")]
    np.testing.assert_allclose(above, np.log1p(cost - cost.min()), rtol=1e-6)
    # Only replicas that take requests are compared with.
    replicas[0, 1, schema.AVAILABLE] = 0.0
    above = features_batch(View(replicas, request), 0.5)[0, :, FEATURES.index("cost_above_least")]
    assert above[0] == 0.0


def _by_name(view: View) -> dict[str, np.ndarray]:
    return dict(zip(FEATURES, features_batch(view, 0.5)[0].T, strict=True))


def _three_replicas(output_tokens: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns (1, 3, ...) of idle replicas that differ in their KV caches, and of a request of 100 tokens."""
    replicas = np.zeros((1, 3, NUM_REPLICA_COLUMNS))
    replicas[0, :, schema.AVAILABLE] = 1.0
    replicas[0, :, schema.KV_CAPACITY_TOKENS] = [1000.0, 2000.0, 4000.0]
    replicas[0, :, schema.MAX_NUM_SEQS] = 100.0
    replicas[0, :, schema.PREFILL_TOKENS_PER_S] = 1000.0
    replicas[0, :, schema.DECODE_ITERATION_S] = 0.01
    request = np.zeros((1, NUM_REQUEST_COLUMNS))
    request[0, schema.PROMPT_TOKENS], request[0, schema.EXPECTED_OUTPUT_TOKENS] = 100.0, output_tokens
    return replicas, request


def test_comparisons_with_the_other_replicas_by_hand() -> None:
    """Three replicas: two hold 96 tokens of the prompt, one nothing."""
    replicas, request = _three_replicas(output_tokens=50.0)
    replicas[0, :, schema.EXPECTED_PREFIX_HIT_TOKENS] = [96.0, 96.0, 0.0]
    replicas[0, :, schema.IN_FLIGHT] = [12.0, 4.0, 3.0]
    replicas[0, :, schema.AWAITING_FIRST_TOKEN] = [2.0, 0.0, 3.0]
    replicas[0, :, schema.PENDING_PREFILL_TOKENS] = [300.0, 0.0, 500.0]
    replicas[0, :, schema.CONTEXT_TOKENS] = [700.0, 900.0, 0.0]
    replicas[0, :, schema.EXPECTED_REMAINING_TOKENS] = [640.0, 64.0, 128.0]
    found = _by_name(View(replicas, request))
    own = np.array([4.0, 4.0, 100.0])
    # Fewer in flight on the third do not count against those that hold the prompt.
    np.testing.assert_allclose(found["in_flight_above_holders"], np.array([8.0, 0.0, -1.0]) / 8)
    demand = (np.array([1640.0, 964.0, 628.0]) + own + 50.0) / np.array([1000.0, 2000.0, 4000.0])
    np.testing.assert_allclose(found["kv_demand"], demand, rtol=1e-6)
    np.testing.assert_allclose(found["kv_demand_above_least"], 4 * (demand - demand.min()), rtol=1e-6)
    product = np.log((np.array([300.0, 0.0, 500.0]) + own) * np.array([13.0, 5.0, 4.0]))
    np.testing.assert_allclose(found["uncached_by_batch_above_least"], product - product.min(), rtol=1e-5)
    delayed = np.array([10.0, 4.0, 0.0]) * own / 1000.0
    np.testing.assert_allclose(found["decodes_delayed_above_least"], delayed - delayed.min(), rtol=1e-6)
    remaining = np.log1p(np.array([10.0, 1.0, 2.0]))
    above = found["expected_remaining_above_least"]
    np.testing.assert_allclose(above, remaining - remaining.min(), rtol=1e-6, atol=1e-7)
    # One that takes no requests is compared, but nobody is compared with it.
    replicas[0, 1, schema.AVAILABLE] = 0.0
    found = _by_name(View(replicas, request))
    assert found["in_flight_above_holders"][0] == 0.0 and found["decodes_delayed_above_least"][2] == 0.0


def test_what_is_expected_of_long_answers_is_bounded() -> None:
    """Linear as far as most clusters go, then the logarithm: continuous, without a kink, still rising."""
    for most in (1.0, 1.5):
        below, at, above = (bounded(most * share, most) for share in (1.0 - 1e-6, 1.0, 1.0 + 1e-6))
        assert at == most
        np.testing.assert_allclose([at - below, above - at], most * 1e-6, rtol=1e-3)
        assert bounded(0.3 * most, most) == 0.3 * most
        assert bounded(most * math.e, most) == pytest.approx(2.0 * most)
    few, many = (_three_replicas(output_tokens=tokens) for tokens in (100.0, 25_600.0))
    few[0][0, :, schema.EXPECTED_REMAINING_TOKENS] = [819.2, 0.0, 0.0]
    many[0][0, :, schema.EXPECTED_REMAINING_TOKENS] = [819_200.0, 8192.0, 0.0]
    usual, long = _by_name(View(*few)), _by_name(View(*many))
    assert usual["expected_remaining_bounded"][0] == pytest.approx(0.1)
    assert usual["expected_output_bounded"][0] == pytest.approx(100 / 256)
    np.testing.assert_allclose(
        long["expected_remaining_bounded"], [1.0 + math.log(100.0), 1.0, 0.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        long["expected_output_bounded"], 1.5 * (1.0 + math.log(100.0 / 1.5)), rtol=1e-6
    )
    # A decode iteration is 0.01 s: 8,192 s and 81.92 s of them.
    decode = [1.5 * (1.0 + math.log(128.0 / 1.5)), 1.28, 0.0]
    np.testing.assert_allclose(long["expected_decode_bounded"], decode, rtol=1e-6)


def test_where_a_conversation_is_at_home_and_what_moving_it_costs_by_hand() -> None:
    """Three replicas: the first is the home and holds 80 tokens of the prompt, the others nothing."""
    replicas, request = _three_replicas(output_tokens=40.0)
    replicas[0, :, schema.SESSION_HOME] = [1.0, 0.0, 0.0]
    replicas[0, :, schema.SCRAPED_PREFIX_HIT_RATE] = [0.5, 0.25, 0.0]
    replicas[0, :, schema.EXPECTED_PREFIX_HIT_TOKENS] = [80.0, 0.0, 0.0]
    replicas[0, :, schema.PENDING_PREFILL_TOKENS] = [900.0, 400.0, 0.0]
    found = _by_name(View(replicas, request))
    np.testing.assert_allclose(found["session_home"], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(found["prefix_hit_rate"], [0.5, 0.25, 0.0])
    np.testing.assert_allclose(found["prompts_that_fit"], np.log([10.0, 20.0, 40.0]) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["replicas"], np.log(3.0) / 2, rtol=1e-6)
    moving = np.array([0.02, 0.2, 0.2])
    np.testing.assert_allclose(found["moving_time"], np.log1p(4 * moving), rtol=1e-6)
    work = np.array([0.92, 0.5, 0.1]) + moving
    np.testing.assert_allclose(found["sticky_work_above_least"], np.log1p(4 * (work - 0.3)), atol=1e-6)
    # A home that takes no requests is none, and nobody is compared with it.
    replicas[0, 0, schema.AVAILABLE] = 0.0
    found = _by_name(View(replicas, request))
    np.testing.assert_allclose(found["moving_time"][1:], np.log1p(4 * 0.1), rtol=1e-6)
    np.testing.assert_allclose(found["replicas"], np.log(2.0) / 2, rtol=1e-6)


def test_pitfall_01_there_is_headroom_in_the_demo() -> None:
    """Routing matters there: the best heuristic is well ahead of round robin."""
    for name, least in (("chat-equal", 1.02), ("chat-unequal", 1.5)):
        scenario = load_scenario(name)
        fleet = build_fleet(scenario)
        wanted = [generate(scenario, requests=1500, rate=13.0, seed=s, split="evaluate") for s in range(4)]
        mean = {}
        for router in ("round_robin", "least_prefill", "weighted_lor"):
            clusters = Clusters([fleet] * 4, wanted)
            run(clusters, Heuristic(router))
            mean[router] = np.mean([clusters.outcomes(c).e2e_s.mean() for c in range(4)])
        assert mean["round_robin"] > least * min(mean["least_prefill"], mean["weighted_lor"])
