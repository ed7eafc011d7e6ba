"""What is logged in each iteration, next to the shaped reward."""

import csv
from pathlib import Path

import numpy as np
import pytest

from fairlead.env.vector import RouterVectorEnv
from fairlead.train.config import TrainConfig
from fairlead.train.run import train
from fairlead.view.features import FEATURES, NUM_FEATURES, features_batch
from fairlead.view.schema import (
    AWAITING_FIRST_TOKEN,
    IN_FLIGHT,
    NUM_REPLICA_COLUMNS,
    NUM_REQUEST_COLUMNS,
    View,
)
from fairlead.workload.scenario import load_scenario

SCENARIO = [load_scenario("chat-unequal")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The log of a tiny run with the hybrid reward."""
    config = TrainConfig.model_validate(
        {
            "threads": 1,
            "imitation": None,
            "environment": {"num_envs": 8, "group": 4, "reward": {"kind": "hybrid", "baseline_weight": 1}},
            "ppo": {"iterations": 3, "critic_warmup_iterations": 0, "rollout_steps": 128, "reset_every": 3},
            "validation": {"loads": [0.7], "favors": [0.5]},
            "evaluate_every": 3,
        }
    )
    out = tmp_path_factory.mktemp("logs") / "run"
    train(config, SCENARIO, out)
    with Path(out / "training.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_operators_feel_is_logged_beside_the_reward(rows: list[dict[str, str]]) -> None:
    last = {name: float(text) for name, text in rows[-1].items() if text}
    performance = {n.removeprefix("performance/"): x for n, x in last.items() if n.startswith("performance/")}
    assert 0 < performance["ttft_mean_s"] < performance["ttft_p90_s"] <= performance["ttft_p99_s"]
    assert performance["e2e_p90_s"] <= performance["e2e_p95_s"] <= performance["e2e_p99_s"]
    assert performance["tpot_p99_s"] > 0
    assert performance["throughput_tokens_per_s"] > performance["throughput_rps"] > 0
    assert performance["batch_size"] > 0 and performance["imbalance_std"] > 0
    assert last["reward/baseline/variance_share"] > 0
    assert {f"safety/{name}" for name in ("latency_cutoff", "starvation", "queue_growth")} <= set(last)
    assert last["charts/temperature"] == 1.0 and last["charts/temperature_is_pulsing"] == 0.0
    assert last["losses/entropy"] > 0 and last["losses/kl"] >= 0
    assert sum(last[f"actions/replica_{r}"] for r in range(4)) == pytest.approx(1.0)
    assert last["evaluation/vs_lor"] > 0


def test_what_the_reward_counts_is_in_the_view() -> None:
    """Requests without a first token and requests in flight, whose integrals are the reward."""
    env = RouterVectorEnv(SCENARIO, num_envs=4, group=2, episode_requests=200, load=(0.9, 0.9))
    env.reset(seed=0)
    for t in range(150):
        env.step(np.full(4, t % 4))
    state, view = env.clusters.state.clusters, env.clusters.view
    awaiting = state["awaiting"] - state["first_tokens"]
    in_system = state["in_system"] - state["finishes"]
    np.testing.assert_array_equal(view.replicas[:, :, AWAITING_FIRST_TOKEN].sum(1), awaiting)
    np.testing.assert_array_equal(view.replicas[:, :, IN_FLIGHT].sum(1), in_system)
    assert in_system.min() > 0


def test_five_and_six_requests_in_flight_are_told_apart() -> None:
    """No saturation in the operating range: one request more moves it by at least 0.02, up to hundreds."""
    column = FEATURES.index("in_flight")
    seen = []
    for count in (5.0, 6.0, 200.0, 201.0):
        view = View(np.ones((1, 2, NUM_REPLICA_COLUMNS)), np.ones((1, NUM_REQUEST_COLUMNS)))
        view.replicas[:, :, IN_FLIGHT] = count
        features = features_batch(view, 0.5)
        assert features.shape == (1, 2, NUM_FEATURES)
        seen.append(float(features[0, 0, column]))
    assert seen[1] - seen[0] > 0.02 and seen[3] - seen[2] > 0.02
